//! Knows who asks: callers, named by how their identity was proved.

mod peer;

pub use peer::{PeerError, UnixPeer};

/// Somebody who asks for something, and how that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A local process, identified by the kernel.
    Unix(UnixPeer),
    /// Strongroom itself: a sweep or a start-up step, with the name of the part that acts.
    System(&'static str),
}

impl Caller {
    /// The namespaced name as it stands in policy and trail: `unix:1000`, `system:sweep`.
    pub fn name(&self) -> String {
        match self {
            Caller::Unix(peer) => format!("unix:{}", peer.uid),
            Caller::System(part) => format!("system:{part}"),
        }
    }
}
