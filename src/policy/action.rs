//! What can be asked for and on what: the words that policy, trail and API share.

use crate::key::Name;

/// Everything that a caller can ask for. One action, one Cedar `Action` entity of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Initialise,
    KeyCreate,
    KeyImport,
    KeyList,
    KeyShow,
    KeyPublic,
    KeyEncrypt,
    KeyDecrypt,
    /// Opening something with a version that is deactivated or compromised, besides `KeyDecrypt`.
    KeyRecover,
    KeyUpdate,
    KeyRotate,
    KeySuspend,
    KeyResume,
    KeyDeactivate,
    KeyCompromise,
    KeyDestroy,
    KeyRestore,
    /// Giving a key another owner.
    KeyTransfer,
    SecretPut,
    SecretList,
    SecretShow,
    SecretReveal,
    SecretDelete,
    SecretTransfer,
    AuditRead,
    StatusRead,
    Doctor,
    MetricsRead,
    Lock,
    Unlock,
    /// Giving the token's PIN, besides the request that it goes with.
    GivePin,
    MasterRotate,
    MasterRetire,
    MasterCancelRetirement,
    MasterRead,
    ConfirmClock,
    RecoverySet,
    RecoveryRead,
    BackupCreate,
}

impl Action {
    pub const ALL: [Action; 39] = [
        Action::Initialise,
        Action::KeyCreate,
        Action::KeyImport,
        Action::KeyList,
        Action::KeyShow,
        Action::KeyPublic,
        Action::KeyEncrypt,
        Action::KeyDecrypt,
        Action::KeyRecover,
        Action::KeyUpdate,
        Action::KeyRotate,
        Action::KeySuspend,
        Action::KeyResume,
        Action::KeyDeactivate,
        Action::KeyCompromise,
        Action::KeyDestroy,
        Action::KeyRestore,
        Action::KeyTransfer,
        Action::SecretPut,
        Action::SecretList,
        Action::SecretShow,
        Action::SecretReveal,
        Action::SecretDelete,
        Action::SecretTransfer,
        Action::AuditRead,
        Action::StatusRead,
        Action::Doctor,
        Action::MetricsRead,
        Action::Lock,
        Action::Unlock,
        Action::GivePin,
        Action::MasterRotate,
        Action::MasterRetire,
        Action::MasterCancelRetirement,
        Action::MasterRead,
        Action::ConfirmClock,
        Action::RecoverySet,
        Action::RecoveryRead,
        Action::BackupCreate,
    ];

    /// Whether what comes of it is that the appliance or a key does less. Such an action is not refused for
    /// want of room, and not for what its principal has done before.
    pub fn restricts(self) -> bool {
        matches!(
            self,
            Action::Lock
                | Action::KeySuspend
                | Action::KeyDeactivate
                | Action::KeyCompromise
                | Action::KeyDestroy
        )
    }

    /// Whether a record is stored by it, besides what only an operator's rotation or backup stores.
    pub fn stores(self) -> bool {
        matches!(
            self,
            Action::KeyCreate | Action::KeyImport | Action::KeyRotate | Action::SecretPut
        )
    }

    /// The name in policy files and trail: `key:decrypt`.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Initialise => "appliance:init",
            Action::KeyCreate => "key:create",
            Action::KeyImport => "key:import",
            Action::KeyList => "key:list",
            Action::KeyShow => "key:show",
            Action::KeyPublic => "key:public",
            Action::KeyEncrypt => "key:encrypt",
            Action::KeyDecrypt => "key:decrypt",
            Action::KeyRecover => "key:recover",
            Action::KeyUpdate => "key:update",
            Action::KeyRotate => "key:rotate",
            Action::KeySuspend => "key:suspend",
            Action::KeyResume => "key:resume",
            Action::KeyDeactivate => "key:deactivate",
            Action::KeyCompromise => "key:compromise",
            Action::KeyDestroy => "key:destroy",
            Action::KeyRestore => "key:restore",
            Action::KeyTransfer => "key:transfer",
            Action::SecretPut => "secret:put",
            Action::SecretList => "secret:list",
            Action::SecretShow => "secret:show",
            Action::SecretReveal => "secret:reveal",
            Action::SecretDelete => "secret:delete",
            Action::SecretTransfer => "secret:transfer",
            Action::AuditRead => "audit:read",
            Action::StatusRead => "appliance:status",
            Action::Doctor => "appliance:doctor",
            Action::MetricsRead => "appliance:metrics",
            Action::Lock => "appliance:lock",
            Action::Unlock => "appliance:unlock",
            Action::GivePin => "appliance:give-pin",
            Action::MasterRotate => "master:rotate",
            Action::MasterRetire => "master:retire",
            Action::MasterCancelRetirement => "master:cancel-retirement",
            Action::MasterRead => "master:read",
            Action::ConfirmClock => "appliance:confirm-clock",
            Action::RecoverySet => "recovery:set",
            Action::RecoveryRead => "recovery:read",
            Action::BackupCreate => "backup:create",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The action of this name, if there is one: for `policy explain`.
impl std::str::FromStr for Action {
    type Err = ActionError;

    fn from_str(name: &str) -> Result<Self, ActionError> {
        Self::ALL.into_iter().find(|action| action.as_str() == name).ok_or(ActionError)
    }
}

/// There is no such action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such action; an action is for example key:decrypt or secret:put")]
pub struct ActionError;

/// What an action is done to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// The appliance as a whole, its status, its trail, its lists.
    Appliance,
    Key(Name),
    Secret(Name),
}

impl Resource {
    /// The name in the trail: `appliance`, `key/payments`, `secret/stripe`.
    pub fn path(&self) -> String {
        match self {
            Resource::Appliance => "appliance".to_owned(),
            Resource::Key(name) => format!("key/{name}"),
            Resource::Secret(name) => format!("secret/{name}"),
        }
    }
}
