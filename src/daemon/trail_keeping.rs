//! What the trail is handed: custody as its signer, the store as the keeper of its head.

use std::sync::Arc;

use crate::audit::{BoxFuture, Head, HeadKeeper, SignError, Signature, Signer, ToSign};
use crate::custody::protocol::{Fault, Newest, Replaced};
use crate::custody::{Client, CustodyError, LinkState, Mark};
use crate::records;
use crate::store::Store;

/// Has custody sign checkpoints in the token, and remember them.
pub struct CustodySigner(pub Client);

impl Signer for CustodySigner {
    fn sign(&self, wanted: ToSign) -> BoxFuture<Result<Signature, SignError>> {
        let custody = self.0.clone();
        Box::pin(async move {
            if !matches!(custody.state(), LinkState::Unlocked { .. }) {
                return Err(SignError::NotReady);
            }
            let ToSign { trail, head, before, closes } = wanted;
            let mark = (head.seq, head.hash.0);
            let signed = custody.sign_checkpoint(&trail, mark, before, closes).await;
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
        behind_end: bool,
    ) -> BoxFuture<Result<Option<Replaced>, SignError>> {
        let custody = self.0.clone();
        Box::pin(async move {
            custody.begin_trail(&trail, newest, behind_end).await.map_err(of_custody)
        })
    }
}

fn of_custody(error: CustodyError) -> SignError {
    match error {
        CustodyError::Fault(Fault::NotNewest(why)) => SignError::NotNewest(why),
        CustodyError::Fault(Fault::Locked | Fault::NotInitialised | Fault::Master(_)) => {
            SignError::NotReady
        }
        error => {
            tracing::debug!(%error, "custody does not sign now");
            SignError::Unavailable
        }
    }
}

/// Keeps heads in the store; the trail itself tells the journal.
pub struct InStore(pub Arc<dyn Store>);

impl HeadKeeper for InStore {
    fn keep(&self, head: Head, _signed: bool) -> BoxFuture<()> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            if let Err(error) = records::keep_head(store.as_ref(), &head.to_string()).await {
                tracing::warn!(%error, "the trail's head could not be kept in the store");
            }
        })
    }
}
