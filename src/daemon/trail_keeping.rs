//! What the trail is handed: custody as its signer, the store as the keeper of its head.

use std::sync::Arc;

use crate::audit::{BoxFuture, Head, HeadKeeper, SignError, Signature, Signer, ToSign};
use crate::custody::protocol::{Begun, Fault, Newest, Noted};
use crate::custody::{Client, CustodyError, LinkState, Mark};
use crate::records::Records;

/// Has custody sign checkpoints in the token, and remember them.
pub struct CustodySigner(pub Client);

impl Signer for CustodySigner {
    fn sign(&self, wanted: ToSign) -> BoxFuture<Result<Signature, SignError>> {
        let custody = self.0.clone();
        Box::pin(async move {
            if !matches!(custody.state(), LinkState::Unlocked { .. }) {
                return Err(SignError::NotReady);
            }
            let ToSign { trail, head, before, closes, stored } = wanted;
            let mark = (head.seq, head.hash.0);
            let signed = custody.sign_checkpoint(&trail, mark, before, (closes, stored)).await;
            let (checkpoint, adopted) = signed.map_err(of_custody)?;
            Ok(Signature { checkpoint, adopted })
        })
    }

    fn newest(&self) -> BoxFuture<Result<Newest, SignError>> {
        let custody = self.0.clone();
        Box::pin(async move { custody.newest_checkpoint().await.map_err(of_custody) })
    }

    fn begin(
        &self,
        trail: String,
        newest: Mark,
        holds: (bool, Option<Noted>),
    ) -> BoxFuture<Result<Begun, SignError>> {
        let custody = self.0.clone();
        Box::pin(
            async move { custody.begin_trail(&trail, newest, holds).await.map_err(of_custody) },
        )
    }

    fn note(&self, trail: String, head: Head, closes: bool) -> BoxFuture<Result<(), SignError>> {
        let custody = self.0.clone();
        let noted = Noted { covers: head.seq, head: head.hash.0 };
        Box::pin(async move { custody.note_line(&trail, noted, closes).await.map_err(of_custody) })
    }
}

fn of_custody(error: CustodyError) -> SignError {
    match error {
        CustodyError::Fault(Fault::NotNewest(why)) => SignError::NotNewest(why),
        CustodyError::Fault(fault @ Fault::State(_)) => SignError::Unremembered(fault.to_string()),
        CustodyError::Fault(Fault::Locked | Fault::NotInitialised | Fault::Master(_)) => {
            SignError::NotReady
        }
        error => {
            tracing::debug!(%error, "custody does not sign now");
            SignError::Unavailable
        }
    }
}

/// Keeps heads in the store, sealed while custody is unlocked; the trail itself tells the journal.
pub struct InStore {
    pub records: Arc<Records>,
    pub custody: Client,
}

impl HeadKeeper for InStore {
    fn keep(&self, trail: &str, head: Head, _signed: bool) -> BoxFuture<bool> {
        let (records, trail) = (Arc::clone(&self.records), trail.to_owned());
        let may_seal = matches!(self.custody.state(), LinkState::Unlocked { .. });
        // It is not given up half-way where nobody waits for it any longer.
        let kept = tokio::spawn(async move {
            let head = (head.seq, head.to_string());
            records.keep_reach(&trail, (head.0, &head.1), may_seal).await
        });
        Box::pin(async move {
            match kept.await {
                Ok(Ok(is_sealed)) => is_sealed,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the trail's head could not be kept in the store");
                    false
                }
                Err(_) => false,
            }
        })
    }
}
