//! What the trail is handed: custody as its signer, the store as the keeper of its head.

use std::sync::Arc;

use crate::audit::{BoxFuture, Head, HeadKeeper, SignError, Signature, Signer};
use crate::custody::protocol::Fault;
use crate::custody::{Client, CustodyError, LinkState};
use crate::records;
use crate::store::Store;

/// Has custody sign checkpoints in the token.
pub struct CustodySigner(pub Client);

impl Signer for CustodySigner {
    fn sign(&self, message: Vec<u8>) -> BoxFuture<Result<Signature, SignError>> {
        let custody = self.0.clone();
        Box::pin(async move {
            if !matches!(custody.state(), LinkState::Unlocked { .. }) {
                return Err(SignError::NotReady);
            }
            let signed = custody.sign_checkpoint(message).await.map_err(|error| match error {
                CustodyError::Fault(Fault::Locked | Fault::NotInitialised | Fault::Master(_)) => {
                    SignError::NotReady
                }
                _ => SignError::Unavailable,
            })?;
            let bytes = signed.signature.try_into().map_err(|_| SignError::Unavailable)?;
            Ok(Signature { generation: signed.generation, bytes })
        })
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
