//! Acts: one struct per request, one way in.
//!
//! A request struct is the body of the wire, the argument of the act and what the trail is told about,
//! all at once. [`Appliance::perform`] judges it, has its line written, runs it and writes the outcome;
//! there is no other way to [`Request::run`].

mod after_start;
mod authorize;
mod backup;
mod binary;
mod cause;
mod clock;
mod crypt;
mod cursor;
mod doctor;
mod edited;
mod error;
mod explain;
mod gate;
mod history;
mod init;
mod key_lists;
mod key_update;
mod keys;
mod lifecycle;
mod lock;
mod master;
mod master_destruction;
mod metrics;
mod next_start;
mod page;
mod precondition;
mod quiet;
mod recovery;
mod refusals;
mod retirement;
mod rotation;
mod scheduling;
mod secrets;
mod socket;
mod span;
mod state;
mod status;
mod sweep;
mod trail;
mod transfer;
mod view;

pub use backup::{BackupMade, CreateBackup};
pub use binary::{Binary, Disclosed, NOT_BASE64, SecretBinary};
pub use cause::{Cause, Row};
pub use clock::{Clock, ClockView, ConfirmClock};
pub use crypt::{
    Decrypt, DecryptBody, DecryptItem, DecryptReply, Decrypted, Encrypt, EncryptBody, Encrypted,
    ItemError, ItemResult,
};
pub use doctor::{CheckView, Doctor, DoctorView};
pub use error::Error;
pub use explain::ExplainPolicy;
pub use gate::{Appliance, Call, HouseChecks, Parts, Request, Trace, Traced};
pub use init::{Init, InitView};
pub use key_lists::{Jwks, JwksQuery, JwksView, KeyPage, ListKeys};
pub use key_update::{UpdateBody, UpdateKey};
pub use keys::{
    CreateKey, ImportBody, ImportKey, NO_PRIVATE_KEY, PublicForm, PublicKeyQuery, PublicKeyReply,
    ShowKey, ShowPublic,
};
pub use lifecycle::{
    ChangeBody, Compromise, Deactivate, Destroy, DestroyBody, Reason, Restore, Resume, Rotate,
    Suspend,
};
pub use lock::{Lock, Unlock};
pub use master::{GenerationView, MasterView, RotateMaster, RotationView, ShowMaster};
pub use metrics::{MetricsView, ReadMetrics};
pub use next_start::{NextStartCheck, StartRefusal};
pub use precondition::{Preconditions, Tags};
pub use quiet::{Quiet, Sparing};
pub use recovery::{ForgetRecovery, RecoveryCounts, RecoveryView, SetRecovery, ShowRecovery};
pub use retirement::{CancelRetirement, RetireMaster};
pub use secrets::{
    DeleteSecret, Deleted, ListSecrets, PutBody, PutReply, PutSecret, RevealSecret, Revealed,
    SecretPage, SecretView, ShowSecret,
};
pub use span::{size, span};
pub use state::{SecretSettings, Settings, Standing};
pub use status::{Status, StatusView};
pub use sweep::Seen;
pub use trail::{AuditPage, PublicKeyPem, ReadAudit, ReadPublicKey};
pub use transfer::{TransferBody, TransferKey, TransferSecret};
pub use view::{KeyView, Named, Page, VersionView};
