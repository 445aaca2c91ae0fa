//! The options about metadata contexts: LIST_META_CONTEXT and SET_META_CONTEXT.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Handshake, HandshakeError, Refusal, malformed};
use crate::nbd::wire::context::{
    ALLOCATION, ALLOCATION_ID, ContextData, decode_contexts, encode_context,
};
use crate::nbd::wire::option::{OptionHeader, encode_option_reply, rep};

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Handshake<'_, S> {
    /// Says which contexts there are. Nothing is chosen, and nothing opened.
    pub(super) async fn list_contexts(
        &mut self,
        header: OptionHeader,
    ) -> Result<(), HandshakeError> {
        let Some(data) = self.data(header).await? else {
            return Ok(());
        };
        let listed = self.requested(&data, |asked| asked.lists_allocation());
        // In a list the number means nothing.
        self.answer(header.option, 0, listed.map(|(_, listed)| listed))
            .await
    }

    /// Chooses contexts for an export. Each choice replaces the one before, and
    /// one that fails leaves none.
    pub(super) async fn set_contexts(
        &mut self,
        header: OptionHeader,
    ) -> Result<(), HandshakeError> {
        self.context = None;
        let Some(data) = self.data(header).await? else {
            return Ok(());
        };
        let chosen = self.requested(&data, |asked| asked.names_allocation());
        if let Ok((name, true)) = &chosen {
            self.context = Some(name.clone());
        }
        self.answer(
            header.option,
            ALLOCATION_ID,
            chosen.map(|(_, chosen)| chosen),
        )
        .await
    }

    /// The export that is meant, and whether the queries have `base:allocation`.
    fn requested(
        &self,
        data: &[u8],
        has: impl Fn(&ContextData<'_>) -> bool,
    ) -> Result<(String, bool), Refusal> {
        if !self.structured {
            let text = "metadata contexts need structured replies";
            return Err((rep::ERR_INVALID, text.to_owned()));
        }
        let asked = decode_contexts(data).map_err(malformed)?;
        let export = self.find(asked.name)?;
        Ok((export.name, has(&asked)))
    }

    async fn answer(
        &mut self,
        option: u32,
        id: u32,
        allocation: Result<bool, Refusal>,
    ) -> Result<(), HandshakeError> {
        let allocation = match allocation {
            Ok(allocation) => allocation,
            Err((kind, text)) => return self.client.reply(option, kind, text.as_bytes()).await,
        };
        let mut replies = Vec::new();
        if allocation {
            let data = encode_context(id, ALLOCATION);
            encode_option_reply(&mut replies, option, rep::META_CONTEXT, &data);
        }
        encode_option_reply(&mut replies, option, rep::ACK, &[]);
        self.client.write(&replies).await
    }
}
