//! A store that another process has open, as its own user and shut in with it: asked over a pair of sockets.
//! Whoever holds a private key or the token opens no file of the store's owner then.
//!
//! A message is its length (u32, little-endian) and its postcard form. What answers is believed as much as
//! the files would be: every record is sealed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::watch::Watchers;
use super::{
    Batch, CommitFuture, Look, Room, StateCheck, StateFuture, Store, StoreError, Stored, Table,
    Take, Watch,
};
use crate::secret::StateKey;

/// A page of a scan has at most a thousand values of 16 KiB.
const LONGEST: usize = 32 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
enum Request {
    Get { table: Table, key: String },
    NextRevision { table: Table, key: String },
    Scan { table: Table, prefix: String, after: Option<String>, limit: u32 },
    Commit(Batch),
    CheckState { key: Zeroizing<[u8; 32]>, store_key: u32, adopt: bool },
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Value(Option<Stored>),
    Revision(u64),
    Page(Vec<(String, Stored)>),
    Done,
    State(StateCheck),
}

/// An error in words, and as itself where somebody acts on it.
#[derive(Serialize, Deserialize)]
enum Failure {
    InUse,
    Full,
    ReadOnly,
    Mode(u32),
    Other(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::InUse => Failure::InUse,
            StoreError::Full => Failure::Full,
            StoreError::ReadOnly => Failure::ReadOnly,
            StoreError::Mode { mode } => Failure::Mode(mode),
            other => Failure::Other(other.to_string()),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InUse => StoreError::InUse,
            Failure::Full => StoreError::Full,
            Failure::ReadOnly => StoreError::ReadOnly,
            Failure::Mode(mode) => StoreError::Mode { mode },
            Failure::Other(what) => StoreError::Served { what },
        }
    }
}

/// Serves a store, or says why it is not open, until the other side hangs up.
pub fn serve(
    opened: Result<&dyn Store, StoreError>,
    mut stream: UnixStream,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let store = match opened {
        Ok(store) => {
            send(&mut stream, &Ok::<_, Failure>(Reply::Done))?;
            store
        }
        Err(error) => return send(&mut stream, &Err::<Reply, _>(Failure::from(error))),
    };
    while let Some(request) = receive::<Request>(&mut stream)? {
        let reply = match request {
            Request::Get { table, key } => store.get(table, &key).map(Reply::Value),
            Request::NextRevision { table, key } => {
                store.next_revision(table, &key).map(Reply::Revision)
            }
            Request::Scan { table, prefix, after, limit } => {
                store.scan(table, &prefix, after.as_deref(), limit as usize).map(Reply::Page)
            }
            Request::Commit(batch) => runtime.block_on(store.commit(batch)).map(|()| Reply::Done),
            Request::CheckState { key, store_key, adopt } => {
                match StateKey::copy_from(key.as_slice()) {
                    Ok(key) => {
                        runtime.block_on(store.check_state(key, store_key, adopt)).map(Reply::State)
                    }
                    Err(error) => Err(StoreError::Served { what: error.to_string() }),
                }
            }
        };
        send(&mut stream, &reply.map_err(Failure::from))?;
    }
    Ok(())
}

/// The other side. It has no watchers, and whoever uses it is the only one who does.
pub struct Served(Mutex<UnixStream>);

impl Served {
    /// Waits until the store is open.
    ///
    /// # Errors
    /// Why it could not be opened.
    pub fn over(mut stream: UnixStream) -> Result<Self, StoreError> {
        match receive::<Result<Reply, Failure>>(&mut stream).map_err(lost)? {
            Some(Ok(_)) => Ok(Self(Mutex::new(stream))),
            Some(Err(failure)) => Err(failure.into()),
            None => Err(StoreError::Closed),
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, StoreError> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(&mut *stream, request).map_err(lost)?;
        match receive::<Result<Reply, Failure>>(&mut *stream).map_err(lost)? {
            Some(reply) => Ok(reply?),
            None => Err(StoreError::Closed),
        }
    }
}

/// It answered what was not asked.
fn confused() -> StoreError {
    StoreError::Corrupt { what: "the process that has it open does not answer as it should" }
}

fn lost(error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::InvalidData => confused(),
        kind => StoreError::Io { during: "asking the process that has it open", kind },
    }
}

impl Store for Served {
    fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        match self.ask(&Request::Get { table, key: key.to_owned() })? {
            Reply::Value(value) => Ok(value),
            _ => Err(confused()),
        }
    }

    fn next_revision(&self, table: Table, key: &str) -> Result<u64, StoreError> {
        match self.ask(&Request::NextRevision { table, key: key.to_owned() })? {
            Reply::Revision(revision) => Ok(revision),
            _ => Err(confused()),
        }
    }

    fn scan(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Stored)>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        match self.ask(&Request::Scan { table, prefix, after, limit })? {
            Reply::Page(page) => Ok(page),
            _ => Err(confused()),
        }
    }

    fn look(&self) -> Look {
        Look::at_once()
    }

    fn is_durable(&self, _table: Table, _key: &str) -> bool {
        true
    }

    fn commit(&self, batch: Batch) -> CommitFuture {
        let done = self.ask(&Request::Commit(batch)).map(drop);
        Box::pin(std::future::ready(done))
    }

    fn check_state(&self, key: StateKey, store_key: u32, adopt: bool) -> StateFuture {
        let Ok(key) = <[u8; 32]>::try_from(key.expose()) else {
            return Box::pin(std::future::ready(Err(confused())));
        };
        let key = Zeroizing::new(key);
        let found = self.ask(&Request::CheckState { key, store_key, adopt });
        let found = found.and_then(|reply| match reply {
            Reply::State(found) => Ok(found),
            _ => Err(confused()),
        });
        Box::pin(std::future::ready(found))
    }

    fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn room(&self) -> Option<Room> {
        None
    }

    fn watch(&self, table: Table, prefix: &str) -> Watch {
        Watchers::new().watch(table, prefix)
    }

    fn copy(&self, _cut: &mut dyn FnMut(), _take: Take<'_>) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
}

fn send(stream: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    // A message may hold the key of the store's state.
    let bytes = Zeroizing::new(postcard::to_allocvec(message).map_err(std::io::Error::other)?);
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(&bytes)
}

/// The next message; `None` where the other side has hung up.
fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> std::io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| invalid())?;
    if length > LONGEST {
        return Err(invalid());
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map(Some).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::super::Expect;
    use super::super::memory::MemoryStore;
    use super::*;

    #[test]
    fn it_answers_as_the_store_itself_does() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || serve(Ok(&MemoryStore::new()), theirs).unwrap());
        let store = Served::over(ours).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let batch = Batch::new().put(Table::Key, "a", Expect::Absent, vec![1; 16 * 1024]).put(
            Table::Key,
            "b",
            Expect::Any,
            Vec::new(),
        );
        runtime.block_on(store.commit(batch)).unwrap();
        assert_eq!(store.get(Table::Key, "a").unwrap().unwrap().value.len(), 16 * 1024);
        assert_eq!(store.get(Table::Secret, "a"), Ok(None));
        assert_eq!(store.next_revision(Table::Key, "b"), Ok(2));
        let names = store.scan(Table::Key, "", Some("a"), 10).unwrap();
        assert_eq!(names.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b"]);
        let again = Batch::new().put(Table::Key, "a", Expect::Absent, Vec::new());
        let refused = runtime.block_on(store.commit(again)).unwrap_err().to_string();
        assert!(refused.contains("changed by somebody else"), "{refused}");
        drop(store);
        serving.join().unwrap();
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_takes_no_memory() {
        let answers: [&[u8]; 4] = [&[0xff; 8], &[1, 0, 0, 0, 9], &[2, 0, 0, 0], &[]];
        for answer in answers {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(answer).unwrap();
            drop(theirs);
            assert!(Served::over(ours).is_err(), "{answer:?}");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        serve(Err(StoreError::InUse), theirs).unwrap();
        assert_eq!(Served::over(ours).err(), Some(StoreError::InUse));
    }
}
