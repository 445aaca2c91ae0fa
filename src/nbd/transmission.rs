//! The transmission phase: requests in, replies out, until the client leaves.
//!
//! One task owns the stream, so nothing on the way of a request needs a lock.
//! It goes round: take the answers that are done, take requests out of what was
//! read, write the replies that are ready, read more. A request is polled once
//! where it was decoded; only one that has to wait becomes a task of its own,
//! so a read from memory costs neither a task nor a wake, and a slow one delays
//! nobody. Replies leave in the order in which they are ready, all that are
//! ready in one vectored write, read data straight from the image's buffers.
//!
//! A request is *in flight* from the moment it is admitted, before its payload
//! is read and before a buffer for it exists, until its reply is written. Both
//! the number of requests in flight and the bytes of their data are bounded
//! ([`Limits`]), for all connections together as well ([`Pool`]); a client that
//! does not read its replies is therefore not read from either, and left after a
//! time ([`Terms::patience`]).
//!
//! | stage of the input | what comes next in the stream | leaves it when |
//! |---|---|---|
//! | `Header` | a request | 28 bytes are there |
//! | `Admission` | its payload, if it is a WRITE | there is room in flight |
//! | `Payload` | the rest of the payload | all of it is there: the request starts |
//! | `Discard` | the rest of a refused WRITE's payload | it is skipped: the error is answered |
//!
//! FLUSH needs no order among requests: it covers the writes that were answered
//! before it was sent, and those are in the image already.

mod complaints;
mod ended;
mod in_flight;
mod input;
mod outbox;
mod reply;
mod request;
mod terms;
mod watch;

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use self::complaints::Complaints;
pub use self::ended::{Ended, TransmissionError};
use self::in_flight::{InFlight, Share};
pub use self::in_flight::{Limits, Pool};
use self::input::{Input, poll_payload};
use self::outbox::Outbox;
use self::request::{Answer, RequestError, check, data_length};
pub use self::terms::{Agreed, Terms};
use self::watch::Watch;
use super::wire::{Command, REQUEST_LEN, Request, decode_request};
use crate::device::{Device, MAX_REQUEST};

/// A longer WRITE closes the connection ("the server MAY initiate a hard
/// disconnect"): its payload is not worth skipping.
const MAX_SKIPPED_WRITE: u32 = 2 * MAX_REQUEST;

/// Serves `device` over `stream` until the client leaves or `stop` completes.
///
/// Pass `&mut stream` to keep the stream afterwards. Must run within a tokio
/// runtime. If the future is dropped, requests in flight are completed in the
/// background and not answered.
pub async fn serve<S, F>(
    stream: S,
    device: Device,
    terms: impl Into<Terms>,
    stop: F,
) -> Result<Ended, TransmissionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let mut connection = Connection::new(stream, device, terms.into());
    let mut stop = pin!(stop);
    poll_fn(|cx| {
        if !connection.stopping && stop.as_mut().poll(cx).is_ready() {
            connection.stopping = true;
        }
        connection.poll(cx)
    })
    .await
}

/// Where the input stands; see the table above. `refused` is the answer of a
/// request that is not carried out.
#[derive(Debug)]
enum Stage {
    Header,
    Admission {
        request: Request,
        refused: Option<RequestError>,
    },
    Payload {
        request: Request,
        share: Share,
        payload: BytesMut,
    },
    Discard {
        left: usize,
        refused: Answer,
    },
}

struct Connection<S> {
    stream: S,
    device: Device,
    agreed: Agreed,
    input: Input,
    stage: Stage,
    in_flight: InFlight,
    /// Answers of the requests that became tasks.
    done: mpsc::UnboundedReceiver<Answer>,
    done_sender: mpsc::UnboundedSender<Answer>,
    outbox: Outbox,
    unflushed: bool,
    /// Nothing is written any more: what was written last may end in the middle
    /// of a reply, and the client would take whatever follows for the rest of it.
    deaf: bool,
    /// The next request's boundary is the end.
    stopping: bool,
    /// Nothing is read any more; returned once nothing is in flight.
    ending: Option<Result<Ended, TransmissionError>>,
    /// The client's part in requests that it began, and in taking replies.
    reading: Watch,
    writing: Watch,
    complaints: Complaints,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, device: Device, terms: Terms) -> Connection<S> {
        // Unbounded, but never fuller than what is in flight.
        let (done_sender, done) = mpsc::unbounded_channel();
        Connection {
            stream,
            device,
            agreed: terms.agreed,
            input: Input::new(),
            stage: Stage::Header,
            in_flight: InFlight::new(terms.limits, terms.pool),
            done,
            done_sender,
            outbox: Outbox::default(),
            unflushed: false,
            deaf: false,
            stopping: false,
            ending: None,
            reading: Watch::new(terms.patience),
            writing: Watch::new(terms.patience),
            complaints: Complaints::default(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, TransmissionError>> {
        loop {
            while let Poll::Ready(Some(answer)) = self.done.poll_recv(cx) {
                self.answer(answer);
            }
            while self.ending.is_none() && self.step(cx) {}
            let wrote = self.poll_write(cx);
            let read = self.poll_read(cx);
            if self.in_flight.is_empty()
                && !self.unflushed
                && let Some(ending) = self.ending.take()
            {
                return Poll::Ready(ending);
            }
            // Without progress every part has left its waker somewhere. What a
            // write released may be what the next request waits for.
            if !wrote && !read && !self.lose_patience(cx) {
                return Poll::Pending;
            }
        }
    }

    /// Gives up what the client has kept waiting for too long; true if anything
    /// changed.
    fn lose_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let amid_request = match self.stage {
            Stage::Header => !self.input.is_empty(),
            Stage::Admission { .. } => false,
            Stage::Payload { .. } | Stage::Discard { .. } => true,
        };
        let reads = self.ending.is_none() && amid_request;
        let stalled = self.reading.is_over(reads, cx);
        if stalled {
            self.end(Err(TransmissionError::Stalled));
        }
        let writes = self.unflushed || !self.outbox.is_empty();
        let stuck = self.writing.is_over(writes, cx);
        if stuck {
            let text = "the client does not take its replies";
            self.stop_writing(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        stalled || stuck
    }

    /// Takes the input one stage further; false when it needs more bytes or
    /// more room.
    fn step(&mut self, cx: &mut Context<'_>) -> bool {
        match mem::replace(&mut self.stage, Stage::Header) {
            Stage::Header => self.step_header(),
            Stage::Admission { request, refused } => self.step_admission(request, refused, cx),
            Stage::Payload {
                request,
                share,
                mut payload,
            } => {
                let left = request.length as usize - payload.len();
                payload.extend_from_slice(self.input.take(left));
                if payload.len() < request.length as usize {
                    self.stage = Stage::Payload {
                        request,
                        share,
                        payload,
                    };
                    return false;
                }
                self.start(request, share, payload.freeze());
                true
            }
            Stage::Discard { left, refused } => {
                let left = left - self.input.take(left).len();
                if left > 0 {
                    self.stage = Stage::Discard { left, refused };
                    return false;
                }
                self.answer(refused);
                true
            }
        }
    }

    fn step_header(&mut self) -> bool {
        let Some(header) = self.input.header() else {
            if self.stopping && self.input.is_empty() {
                self.end(Ok(Ended::Stopped));
            }
            return false;
        };
        let request = match decode_request(header) {
            Ok(request) => request,
            Err(error) => {
                self.end(Err(error.into()));
                return false;
            }
        };
        match request.command {
            // Whatever its other fields hold: there is no reply to say so.
            Command::Disconnect => {
                self.end(Ok(Ended::Disconnected));
                return false;
            }
            Command::Write if request.length > MAX_SKIPPED_WRITE => {
                self.end(Err(TransmissionError::Oversized {
                    offset: request.offset,
                    length: request.length,
                }));
                return false;
            }
            _ => {}
        }
        self.reading.completed();
        let refused = check(&self.device, self.agreed, &request).err();
        self.stage = Stage::Admission { request, refused };
        true
    }

    fn step_admission(
        &mut self,
        request: Request,
        refused: Option<RequestError>,
        cx: &mut Context<'_>,
    ) -> bool {
        let bytes = match &refused {
            Some(_) => 0,
            None => data_length(&request),
        };
        let Poll::Ready(share) = self.in_flight.poll_admit(bytes, cx) else {
            self.stage = Stage::Admission { request, refused };
            return false;
        };
        let refused = refused.map(|error| Answer::failed(&request, self.agreed, share, error));
        match (request.command, refused) {
            (Command::Write, Some(refused)) => {
                let left = request.length as usize;
                self.stage = Stage::Discard { left, refused };
            }
            (Command::Write, None) => {
                // At most MAX_REQUEST, and its share is taken.
                let payload = BytesMut::with_capacity(request.length as usize);
                self.stage = Stage::Payload {
                    request,
                    share,
                    payload,
                };
            }
            (_, Some(refused)) => self.answer(refused),
            (_, None) => self.start(request, share, Bytes::new()),
        }
        true
    }

    /// Carries a request out: to its end if it need not wait, else as a task.
    fn start(&mut self, request: Request, share: Share, payload: Bytes) {
        let device = self.device.clone();
        let running = request::carry_out(device, request, self.agreed, share, payload);
        let mut running = Box::pin(running);
        // The wake of this poll may be lost: a task polls again at once.
        let mut cx = Context::from_waker(Waker::noop());
        match running.as_mut().poll(&mut cx) {
            Poll::Ready(answer) => self.answer(answer),
            Poll::Pending => {
                let done = self.done_sender.clone();
                tokio::spawn(async move {
                    // Nobody receives once `serve` was dropped.
                    let _ = done.send(running.await);
                });
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(failure) = &answer.failure {
            self.complaints.log(failure);
        }
        match self.deaf {
            true => self.in_flight.release(answer.reply.share),
            false => self.outbox.push(answer.reply),
        }
    }

    /// Writes what is ready; true if anything changed.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.outbox.is_empty() {
            match self.outbox.poll_write(Pin::new(&mut self.stream), cx) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(written)) => {
                    let in_flight = &mut self.in_flight;
                    let writing = &mut self.writing;
                    writing.moved(written);
                    self.outbox.advance(written, |share| {
                        in_flight.release(share);
                        writing.completed();
                    });
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => self.stop_writing(error),
            }
            progress = true;
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => self.stop_writing(error),
            }
            progress = true;
        }
        progress
    }

    /// Reads once, into where the bytes belong; true if anything changed.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ending.is_some() {
            return false;
        }
        let stream = Pin::new(&mut self.stream);
        // Once stopping, nothing is read beyond the request in hand.
        let read = match &mut self.stage {
            Stage::Admission { .. } => return false,
            Stage::Payload {
                request, payload, ..
            } => poll_payload(stream, payload, request.length as usize, cx),
            Stage::Header if self.stopping => {
                let missing = REQUEST_LEN - self.input.len();
                self.input.poll_fill(stream, missing, cx)
            }
            Stage::Discard { left, .. } if self.stopping => self.input.poll_fill(stream, *left, cx),
            Stage::Header | Stage::Discard { .. } => self.input.poll_fill(stream, usize::MAX, cx),
        };
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => {
                let boundary = matches!(self.stage, Stage::Header) && self.input.is_empty();
                self.end(if boundary {
                    Ok(Ended::Eof)
                } else {
                    Err(TransmissionError::Truncated)
                });
            }
            Poll::Ready(Ok(length)) => self.reading.moved(length),
            Poll::Ready(Err(error)) => self.end(Err(TransmissionError::Io(error))),
        }
        true
    }

    /// The client does not listen any more: replies are dropped, these and those
    /// of what is still in flight.
    fn stop_writing(&mut self, error: io::Error) {
        self.deaf = true;
        self.unflushed = false;
        let in_flight = &mut self.in_flight;
        self.outbox.clear(|share| in_flight.release(share));
        self.end(Err(TransmissionError::Io(error)));
    }

    /// Stops reading. The first reason stands: that a reply cannot be written
    /// after DISC or the end of the stream is no news.
    fn end(&mut self, how: Result<Ended, TransmissionError>) {
        match mem::replace(&mut self.stage, Stage::Header) {
            Stage::Header => {}
            Stage::Admission { .. } => self.in_flight.give_up(),
            Stage::Payload { share, .. } => self.in_flight.release(share),
            Stage::Discard { refused, .. } => self.in_flight.release(refused.reply.share),
        }
        if self.ending.is_none() {
            self.ending = Some(how);
        }
    }
}
