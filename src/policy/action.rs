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
    /// Asking whether somebody may do something, and why.
    PolicyExplain,
}

impl Action {
    pub const ALL: [Action; 40] = [
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
        Action::PolicyExplain,
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

    /// What a request with this action needs the permission for besides: the one declaration that the gate, the
    /// description of the API and `policy explain` go by. Nothing else is asked on the way of a permitted request.
    pub fn also(self) -> &'static [Also] {
        const RECOVER: Also =
            Also { action: Action::KeyRecover, on: On::TheKey, when: When::OldVersion };
        const TRANSFER: Also =
            Also { action: Action::KeyTransfer, on: On::Same, when: When::OwnerNamed };
        const PIN: Also = Also { action: Action::GivePin, on: On::Same, when: When::PinGiven };
        const DECRYPT: Action = Action::KeyDecrypt;
        match self {
            Action::BackupCreate => {
                &[Also { action: Action::AuditRead, on: On::Same, when: When::Always }]
            }
            Action::SecretReveal => {
                &[Also { action: DECRYPT, on: On::TheKey, when: When::Always }, RECOVER]
            }
            Action::SecretPut => &[
                Also { action: Action::KeyEncrypt, on: On::TheKey, when: When::Always },
                Also { action: DECRYPT, on: On::TheKey, when: When::Verified },
                RECOVER,
            ],
            Action::KeyDecrypt => &[Also { on: On::Same, ..RECOVER }],
            Action::KeyCreate | Action::KeyImport => &[TRANSFER],
            Action::Unlock | Action::MasterRetire => &[PIN],
            _ => &[],
        }
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
            Action::PolicyExplain => "policy:explain",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A permission that a request needs besides that of its action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Also {
    pub action: Action,
    pub on: On,
    pub when: When,
}

/// What a further permission is needed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// What the request is about.
    Same,
    /// The key that the secret is encrypted for.
    TheKey,
}

/// When a further permission is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// The ciphertext that is stored is to be verified.
    Verified,
    /// The version of the key is deactivated or compromised.
    OldVersion,
    /// The token's PIN is given with the request.
    PinGiven,
    /// Another owner than the caller is named.
    OwnerNamed,
}

impl When {
    /// In words, behind "where"; empty for always.
    pub fn as_str(self) -> &'static str {
        match self {
            When::Always => "",
            When::Verified => "`verify` is true",
            When::OldVersion => "the version is deactivated or compromised",
            When::PinGiven => "a PIN is given",
            When::OwnerNamed => "another owner than the caller is named",
        }
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

/// Not the name of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a resource is `appliance`, `key/NAME` or `secret/NAME`")]
pub struct ResourceError;

/// As the trail writes them.
impl std::str::FromStr for Resource {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let name = |name: &str| Name::parse(name).map_err(|_| ResourceError);
        match text.split_once('/') {
            None if text == "appliance" => Ok(Resource::Appliance),
            Some(("key", rest)) => Ok(Resource::Key(name(rest)?)),
            Some(("secret", rest)) => Ok(Resource::Secret(name(rest)?)),
            _ => Err(ResourceError),
        }
    }
}
