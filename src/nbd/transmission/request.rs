//! One request: what is refused, how it is carried out, which errno a failure
//! becomes. The only file that maps errors to errnos.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::FutureExt;

use super::in_flight::Share;
use super::outbox::Reply;
use super::reply::{self, Outcome};
use super::terms::Agreed;
use crate::device::{Device, DeviceError, MAX_REQUEST};
use crate::image::ImageError;
use crate::nbd::wire::{Command, Errno, Request, command_flag};

/// Extents in one answer to BLOCK_STATUS.
const MAX_EXTENTS: usize = 1024;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("unknown command")]
    Unknown,
    #[error("the flags {0:#06x} are not valid for this command")]
    Flags(u16),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("the volume returned {0} bytes")]
    WrongLength(usize),
    #[error("the volume panicked")]
    Panicked,
}

impl RequestError {
    /// "Error values". A range beyond the end is ENOSPC where data would be
    /// written and EINVAL elsewhere.
    fn errno(&self, command: Command) -> Errno {
        match self {
            RequestError::Unknown | RequestError::Flags(_) => Errno::Invalid,
            RequestError::WrongLength(_) | RequestError::Panicked => Errno::Io,
            RequestError::Device(error) => match error {
                DeviceError::ReadOnly => Errno::NotPermitted,
                DeviceError::Malformed { .. } => Errno::Invalid,
                DeviceError::OutOfRange { .. } => match command {
                    Command::Write | Command::WriteZeroes => Errno::NoSpace,
                    _ => Errno::Invalid,
                },
                DeviceError::Image(ImageError::Closed) => Errno::Shutdown,
                DeviceError::Image(
                    ImageError::Store(_) | ImageError::Damaged(_) | ImageError::Superseded(_),
                ) => Errno::Io,
            },
        }
    }
}

/// A request that failed, for the log.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) request: Request,
    pub(super) error: RequestError,
}

/// A request's reply, and what to say about it if it failed.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) failure: Option<Box<Failure>>,
}

impl Answer {
    pub(super) fn failed(
        request: &Request,
        agreed: Agreed,
        share: Share,
        error: RequestError,
    ) -> Answer {
        let errno = error.errno(request.command);
        Answer {
            reply: reply::failure(request, agreed, share, errno, &error.to_string()),
            failure: Some(Box::new(Failure {
                request: *request,
                error,
            })),
        }
    }
}

/// Bytes that a request has in flight; none for a READ too long to be served.
pub(super) fn data_length(request: &Request) -> u64 {
    match request.command {
        Command::Read | Command::Write if request.length <= MAX_REQUEST => request.length.into(),
        _ => 0,
    }
}

/// What can be refused before a payload is read. Other commands' ranges are
/// checked by the device.
///
/// FUA is accepted with every command, as the document demands; clients are
/// known to send it with reads. NO_HOLE asks to reserve space: an object store
/// reserves none, so there is nothing to do. DF and BLOCK_STATUS need what the
/// handshake agreed on; the other flags are not offered. Offset and length of FLUSH "MUST be zero" and are not looked
/// at: a flush of everything is also one of any part.
pub(super) fn check(
    device: &Device,
    agreed: Agreed,
    request: &Request,
) -> Result<(), RequestError> {
    let known = match request.command {
        Command::Unknown(_) => return Err(RequestError::Unknown),
        Command::BlockStatus if !agreed.block_status => return Err(RequestError::Unknown),
        Command::BlockStatus => command_flag::FUA | command_flag::REQ_ONE,
        Command::Read if agreed.structured => command_flag::FUA | command_flag::DF,
        Command::WriteZeroes => command_flag::FUA | command_flag::NO_HOLE,
        _ => command_flag::FUA,
    };
    match request.flags & !known {
        0 => {}
        unknown => return Err(RequestError::Flags(unknown)),
    }
    if request.command == Command::Write {
        device.check_write(request.offset, request.length)?;
    }
    Ok(())
}

/// Carries out a request that was checked. A panic below costs that request
/// only, not the connection and with it a mounted file system.
pub(super) async fn carry_out(
    device: Device,
    request: Request,
    agreed: Agreed,
    share: Share,
    payload: Bytes,
) -> Answer {
    let result = AssertUnwindSafe(perform(&device, &request, payload))
        .catch_unwind()
        .await;
    match result.unwrap_or(Err(RequestError::Panicked)) {
        Ok(outcome) => Answer {
            reply: reply::success(&request, agreed, share, outcome),
            failure: None,
        },
        Err(error) => Answer::failed(&request, agreed, share, error),
    }
}

async fn perform(
    device: &Device,
    request: &Request,
    payload: Bytes,
) -> Result<Outcome, RequestError> {
    let (offset, length, fua) = (request.offset, request.length, request.fua());
    match request.command {
        Command::Read => {
            let data = device.read(offset, length).await?;
            // A wrong length would make the client read data as headers.
            match data.iter().map(Bytes::len).sum::<usize>() {
                sum if sum == length as usize => return Ok(Outcome::Data(data)),
                sum => return Err(RequestError::WrongLength(sum)),
            }
        }
        Command::BlockStatus => {
            let one = request.flags & command_flag::REQ_ONE != 0;
            let most = if one { 1 } else { MAX_EXTENTS };
            let extents = device.extents(offset, length.into(), most).await?;
            return Ok(Outcome::Status(extents));
        }
        Command::Write => device.write(offset, payload, fua).await?,
        Command::Flush => device.flush().await?,
        Command::Trim => device.discard(offset, length.into(), fua).await?,
        Command::WriteZeroes => device.write_zeroes(offset, length.into(), fua).await?,
        Command::Disconnect | Command::Unknown(_) => return Err(RequestError::Unknown),
    }
    Ok(Outcome::Done)
}
