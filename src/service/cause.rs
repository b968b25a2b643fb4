//! What keeps the appliance from all or a part of its work: one table of causes, and for each what status,
//! health, metrics, trail and callers are told. The word of the trail's `token-lost` is the reason's.

use crate::custody::Reason;

/// Why it does not do all of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Service by the token has stopped.
    Token(Reason),
    Locked,
    NotInitialised,
    /// The store is older than the trail knows it in what the appliance is.
    Edited,
    /// Store and trail do not end as custody remembers.
    RolledBack,
    Store,
    /// The store has too little room for changes.
    Room,
    Trail,
}

/// What is said of a cause.
pub struct Row {
    cause: Cause,
    /// The state in `status` and `metrics`.
    pub state: &'static str,
    /// The code of the problem document.
    pub code: &'static str,
    /// What callers are told.
    pub text: &'static str,
    /// What to do about it.
    pub next: &'static str,
    /// The setting or the thing that `doctor` names.
    pub mends: &'static str,
    /// Whether it may pass by itself, so that callers should try again soon.
    pub passes: bool,
}

impl Cause {
    /// Its row; every cause has one.
    pub fn row(self) -> &'static Row {
        let [first, ..] = &TABLE;
        TABLE.iter().find(|row| row.cause == self).unwrap_or(first)
    }
}

const AWAY: Row = Row {
    cause: Cause::Token(Reason::TokenAbsent),
    state: "token-unavailable",
    code: "token-unavailable",
    text: "the token cannot be used at the moment",
    next: "try again: it is looked for until it is back; if it stays away, an operator sees why with \
           `strongroom doctor`",
    mends: "[token] module, label or serial, and the module's own environment",
    passes: true,
};

const CUSTODY: Row = Row {
    cause: Cause::Token(Reason::CustodyGone),
    next: "try again: custody is started anew; if it stays away, an operator sees why in the journal of \
           strongroom-custody",
    mends: "[custody] socket; `systemctl status strongroom-custody`",
    ..AWAY
};

static TABLE: [Row; 18] = [
    AWAY,
    Row { cause: Cause::Token(Reason::TokenFailed), ..AWAY },
    Row { cause: Cause::Token(Reason::LoginLost), ..AWAY },
    Row { cause: Cause::Token(Reason::ModuleFailed), ..AWAY },
    Row { cause: Cause::Token(Reason::ModuleHung), ..AWAY },
    CUSTODY,
    Row { cause: Cause::Token(Reason::CustodySilent), ..CUSTODY },
    Row {
        cause: Cause::Token(Reason::PinRefused),
        state: "pin-refused",
        code: "pin-refused",
        text: "the token refused the PIN; an operator has to act",
        next: "an operator corrects the PIN's file, then `strongroom unlock`, which tries no PIN of it again \
               that was refused; where it is a systemd credential, `systemctl restart strongroom-custody` \
               comes before; a further wrong PIN may lock the token",
        mends: "[token] pin_file, then `strongroom unlock`; or pin_credential, then `systemctl restart \
                strongroom-custody` and `strongroom unlock`",
        passes: false,
    },
    Row {
        cause: Cause::Token(Reason::PinUnavailable),
        state: "pin-unavailable",
        code: "pin-unavailable",
        text: "there is no PIN for the token; an operator has to act",
        next: "an operator sees with `strongroom status` what is wrong with [token] pin_file or \
               pin_credential, mends it, then `strongroom unlock`; no PIN was tried",
        mends: "[token] pin_file or pin_credential, then `strongroom unlock`",
        passes: false,
    },
    Row {
        cause: Cause::Token(Reason::MasterUnfit),
        state: "master-unfit",
        code: "master-key",
        text: "the master key cannot be used; an operator has to act",
        next: "an operator puts back the token that this appliance was initialised with, or that token's \
               own backup, and it goes on by itself; `strongroom status` says what was found instead",
        mends: "[token] label or serial: the token with this appliance's master key, or its backup",
        passes: false,
    },
    Row {
        cause: Cause::Token(Reason::CustodyState),
        state: "custody-state-unavailable",
        code: "custody-state-unavailable",
        text: "custody cannot read or write what it has to remember, so nothing is served",
        next: "try again once an operator has freed room on the file system of [custody] state_directory, or \
               mended its permissions; `strongroom status` says what failed, and it goes on by itself",
        mends: "room on the file system of [custody] state_directory, and its permissions",
        passes: true,
    },
    Row {
        cause: Cause::Locked,
        state: "locked",
        code: "locked",
        text: "the appliance is locked",
        next: "an operator unlocks it with `strongroom unlock`",
        mends: "`strongroom unlock`",
        passes: false,
    },
    Row {
        cause: Cause::NotInitialised,
        state: "not-initialised",
        code: "not-initialised",
        text: "this appliance is not initialised",
        next: "an operator runs `strongroom init`",
        mends: "`strongroom init`",
        passes: false,
    },
    Row {
        cause: Cause::Edited,
        state: "store-edited",
        code: "store-edited",
        text: "the store is older than the audit trail knows it, so nothing is done",
        next: "an operator puts the right store at [store] path, or accepts it as it is with [audit] \
               on_break = \"record\"; `strongroom status` says what is older",
        mends: "the store at [store] path: the newest copy; or [audit] on_break",
        passes: false,
    },
    Row {
        cause: Cause::RolledBack,
        state: "store-rolled-back",
        code: "store-rolled-back",
        text: "store and audit log do not end as custody remembers, so nothing is done",
        next: "an operator puts the newest store and audit log back; or, where this copy is to be used, as after \
               a disaster, accepts it as root with `strongroom accept-rollback`, which `strongroom status` \
               writes out",
        mends: "the newest copy at [store] path and [audit] directory; or `strongroom accept-rollback`",
        passes: false,
    },
    Row {
        cause: Cause::Store,
        state: "store-unavailable",
        code: "store-unavailable",
        text: "the store cannot be used at the moment",
        next: "try again; an operator sees why with `strongroom status`: the disk, or permissions. What must \
               stop at once is stopped by `strongroom lock`, which closes all, with or without the store",
        mends: "the disk of [store] path; see the journal",
        passes: true,
    },
    Row {
        cause: Cause::Room,
        state: "changes-refused",
        code: "store-full",
        text: "the store has too little room, so nothing is changed",
        next: "nothing was changed; once an operator has freed room on the store's disk, send it again",
        mends: "room on the disk of [store] path, or [store] reserve_bytes",
        passes: true,
    },
    Row {
        cause: Cause::Trail,
        state: "trail-unavailable",
        code: "trail-unavailable",
        text: "the audit trail cannot be written, so nothing is done",
        next: "try again; an operator sees why with `strongroom status`: a full disk, or permissions",
        mends: "the disk of [audit] directory; see the journal",
        passes: true,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_row_and_whoever_must_act_is_named() {
        use Cause::{Edited, Locked, NotInitialised, RolledBack, Room, Store, Trail};
        let others = [Locked, NotInitialised, Edited, RolledBack, Store, Room, Trail];
        let causes: Vec<Cause> = Reason::ALL.into_iter().map(Cause::Token).chain(others).collect();
        assert_eq!(causes.len(), TABLE.len());
        for cause in causes {
            let row = cause.row();
            assert_eq!(row.cause, cause);
            assert!(row.passes || row.next.starts_with("an operator "), "{}", row.next);
            if let Cause::Token(reason) = cause {
                assert_eq!(row.passes, !reason.needs_operator(), "{reason:?}");
                // Where state and reason are of one kind they are one word.
                let is_own = reason.needs_operator() || reason == Reason::CustodyState;
                let own = if is_own { reason.as_str() } else { "token-unavailable" };
                assert_eq!(row.state, own);
            }
        }
    }
}
