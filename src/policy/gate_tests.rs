//! The shipped policies, every role against every action, and what a bad directory is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::{Asked, Binding, NameOrId};
use super::*;
use crate::key::{Name, Owner};
use crate::sandbox::Untrusted;

const OPERATOR: u32 = 101;
const AUDITOR: u32 = 102;
const SERVICE: u32 = 103;
const NOBODY: u32 = 104;
const BACKUP: u32 = 105;

fn settings(directory: &Path) -> Settings {
    let users = |uid| Binding { users: vec![NameOrId::Id(uid)], groups: Vec::new() };
    let roles =
        [("operator", OPERATOR), ("auditor", AUDITOR), ("service", SERVICE), ("backup", BACKUP)];
    let roles = roles.into_iter().map(|(role, uid)| (role.to_owned(), users(uid))).collect();
    Settings { directory: directory.to_owned(), roles }
}

fn shipped() -> Policy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy");
    Policy::load(&settings(&directory)).unwrap()
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn load(files: &[(&str, &str)]) -> Result<Policy, PolicyError> {
    Policy::load(&settings(directory(files).path()))
}

fn complaint(files: &[(&str, &str)]) -> String {
    load(files).unwrap_err().to_string()
}

fn caller(uid: u32) -> Caller {
    Caller::Unix(UnixPeer { uid, gid: uid, pid: 1, groups: Vec::new() })
}

fn key(name: &str) -> Resource {
    Resource::Key(Name::parse(name).unwrap())
}

fn secret(name: &str) -> Resource {
    Resource::Secret(Name::parse(name).unwrap())
}

fn may(policy: &Policy, uid: u32, action: Action, resource: &Resource) -> bool {
    policy.permit(&caller(uid), action, resource, Facts::Unknown).is_ok()
}

fn owner(uid: u32) -> Owner {
    Owner::of_uid(uid).unwrap()
}

/// The same for what this user owns, or nobody, with these labels.
fn may_of(
    policy: &Policy,
    uid: u32,
    action: Action,
    resource: &Resource,
    (owner_uid, labels): (Option<u32>, &Labels),
) -> bool {
    let owner = owner_uid.map(owner);
    let facts = Facts::Known { owner: owner.as_ref(), labels: Some(labels) };
    policy.permit(&caller(uid), action, resource, facts).is_ok()
}

/// What an action is done to.
fn resource_of(action: Action) -> Resource {
    match action.as_str().split_once(':') {
        Some(("key" | "secret", "list")) => Resource::Appliance,
        Some(("key", _)) => key("payments"),
        Some(("secret", _)) => secret("stripe"),
        _ => Resource::Appliance,
    }
}

/// Who may what as shipped, whoever owns it: o(perator), a(uditor), s(ervice), b(ackup). Who may it on what is
/// their own is in capitals.
const SHIPPED: [(Action, &str); 40] = [
    (Action::Initialise, "o"),
    (Action::KeyCreate, "o"),
    (Action::KeyImport, "o"),
    (Action::KeyList, "oas"),
    (Action::KeyShow, "oaS"),
    (Action::KeyPublic, "oas"),
    (Action::KeyEncrypt, "s"),
    (Action::KeyDecrypt, "S"),
    (Action::KeyRecover, ""),
    (Action::KeyUpdate, "o"),
    (Action::KeyRotate, "o"),
    (Action::KeySuspend, "o"),
    (Action::KeyResume, "o"),
    (Action::KeyDeactivate, "o"),
    (Action::KeyCompromise, "o"),
    (Action::KeyDestroy, "o"),
    (Action::KeyRestore, "o"),
    (Action::KeyTransfer, "OS"),
    (Action::SecretPut, "S"),
    (Action::SecretList, "oas"),
    (Action::SecretShow, "oaS"),
    (Action::SecretReveal, "S"),
    (Action::SecretDelete, "S"),
    (Action::SecretTransfer, "OS"),
    (Action::AuditRead, "ab"),
    (Action::StatusRead, "oa"),
    (Action::Doctor, "o"),
    (Action::MetricsRead, "oa"),
    (Action::Lock, "o"),
    (Action::Unlock, "o"),
    (Action::GivePin, "o"),
    (Action::MasterRotate, "o"),
    (Action::MasterRetire, "o"),
    (Action::MasterCancelRetirement, "o"),
    (Action::MasterRead, "oa"),
    (Action::ConfirmClock, "o"),
    (Action::RecoverySet, "o"),
    (Action::RecoveryRead, "oa"),
    (Action::BackupCreate, "b"),
    (Action::PolicyExplain, "oa"),
];

#[test]
fn every_role_may_exactly_what_the_shipped_policies_say() {
    let policy = shipped();
    assert_eq!(policy.warnings(), []);
    for action in Action::ALL {
        let (_, who) = SHIPPED.iter().find(|(listed, _)| *listed == action).unwrap();
        let resource = resource_of(action);
        let users = [(OPERATOR, 'o'), (AUDITOR, 'a'), (SERVICE, 's'), (BACKUP, 'b'), (NOBODY, '-')];
        for (uid, letter) in users {
            for turn in ["first", "remembered"] {
                let allowed = may(&policy, uid, action, &resource);
                assert_eq!(allowed, who.contains(letter), "{letter} {action} {turn}");
                let none = Labels::default();
                let of = |owner| may_of(&policy, uid, action, &resource, (owner, &none));
                let own = who.contains(letter) || who.contains(letter.to_ascii_uppercase());
                assert_eq!(of(Some(uid)), own, "{letter} {action} its own, {turn}");
                assert_eq!(of(Some(4711)), allowed, "{letter} {action} another's, {turn}");
                let transfers = matches!(action, Action::KeyTransfer | Action::SecretTransfer);
                let nobodys = allowed || transfers && letter == 'o';
                assert_eq!(of(None), nobodys, "{letter} {action} nobody's, {turn}");
            }
        }
        assert!(!may(&policy, 0, action, &resource), "root has no role, yet may {action}");
    }
    assert!(may(&policy, SERVICE, Action::KeyPublic, &Resource::Appliance));
}

#[test]
fn the_schema_knows_every_action_and_no_other() {
    let schema: cedar_policy::Schema = load::SCHEMA.parse().unwrap();
    let groups: Vec<String> = schema.action_groups().map(|uid| uid.to_string()).collect();
    let mut known: Vec<String> = schema
        .actions()
        .filter(|uid| !groups.contains(&uid.to_string()))
        .map(|uid| uid.id().unescaped().to_owned())
        .collect();
    known.sort();
    let mut ours: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
    ours.sort_unstable();
    assert_eq!(known, ours);
    for action in Action::ALL {
        assert_eq!(action.as_str().parse(), Ok(action));
    }
}

#[test]
fn an_action_on_the_wrong_kind_of_thing_is_refused() {
    let everything = load(&[("all.cedar", "permit (principal, action, resource);")]).unwrap();
    for action in Action::ALL {
        for resource in [Resource::Appliance, key("a"), secret("a")] {
            let fits = std::mem::discriminant(&resource)
                == std::mem::discriminant(&resource_of(action))
                || (action == Action::KeyPublic && resource == Resource::Appliance);
            assert_eq!(may(&everything, NOBODY, action, &resource), fits, "{action} {resource:?}");
        }
    }
}

#[test]
fn nothing_is_permitted_by_an_empty_directory() {
    let policy = load(&[("README", "not a policy")]).unwrap();
    assert_eq!(policy.count(), 0);
    for action in Action::ALL {
        let denied = policy
            .permit(&caller(OPERATOR), action, &resource_of(action), Facts::Unknown)
            .unwrap_err();
        assert_eq!(denied.refusal(), &Refusal::Nothing);
        assert_eq!(denied.to_string(), format!("not permitted: {action}"));
    }
}

#[test]
fn a_forbid_wins_whatever_permits() {
    let policy = load(&[
        ("a.cedar", "permit (principal, action, resource);"),
        ("b.cedar", r#"@id("frozen") forbid (principal, action, resource == Key::"frozen");"#),
    ])
    .unwrap();
    assert!(may(&policy, NOBODY, Action::KeyDecrypt, &key("free")));
    let denied = policy
        .permit(&caller(NOBODY), Action::KeyDecrypt, &key("frozen"), Facts::Unknown)
        .unwrap_err();
    assert_eq!(denied.refusal(), &Refusal::Forbidden(vec!["frozen".to_owned()]));
}

#[test]
fn single_users_single_keys_and_names_can_be_permitted() {
    let text = r#"
        permit (principal == User::"unix:7", action == Action::"key:decrypt", resource == Key::"shop");
        permit (principal, action == Action::"secret:reveal", resource is Secret)
        when { resource.name like "shop.*" && context has uid && context.uid == 7 };
    "#;
    let policy = load(&[("shop.cedar", text)]).unwrap();
    assert!(may(&policy, 7, Action::KeyDecrypt, &key("shop")));
    assert!(!may(&policy, 8, Action::KeyDecrypt, &key("shop")));
    assert!(!may(&policy, 7, Action::KeyDecrypt, &key("shop2")));
    assert!(!may(&policy, 7, Action::KeyEncrypt, &key("shop")));
    assert!(may(&policy, 7, Action::SecretReveal, &secret("shop.stripe")));
    assert!(!may(&policy, 7, Action::SecretReveal, &secret("shopping")));
    assert!(!may(&policy, 8, Action::SecretReveal, &secret("shop.stripe")));
}

#[test]
fn labels_decide_and_where_they_are_unknown_the_answer_is_no() {
    let text = r#"
        permit (principal, action, resource);
        @id("no-live") forbid (principal, action == Action::"key:decrypt", resource)
        when { resource.hasTag("env") && resource.getTag("env") == "live" };
    "#;
    let policy = load(&[("labels.cedar", text)]).unwrap();
    assert!(policy.reads_facts(&key("a")) && !policy.reads_facts(&Resource::Appliance));
    let labelled = |env: &str| {
        let mut labels = Labels::default();
        labels.insert("env", env).unwrap();
        labels
    };
    let (live, test, none) = (labelled("live"), labelled("test"), Labels::default());
    let ask = |facts| {
        let answer = policy.permit(&caller(1), Action::KeyDecrypt, &key("a"), facts);
        answer.map(drop).map_err(|denied| denied.refusal().clone())
    };
    let of = |labels| Facts::Known { owner: None, labels: Some(labels) };
    for _ in 0..2 {
        assert_eq!(ask(of(&test)), Ok(()));
        assert_eq!(ask(of(&live)), Err(Refusal::Forbidden(vec!["no-live".to_owned()])));
        assert_eq!(ask(of(&none)), Ok(()));
        assert_eq!(ask(Facts::Unknown), Err(Refusal::FactsUnknown));
        // Whether a hidden key is there shows in no answer.
        assert_eq!(ask(Facts::Absent), Err(Refusal::Forbidden(vec!["no-live".to_owned()])));
    }
    assert!(may(&policy, 1, Action::SecretReveal, &secret("a")));
}

#[test]
fn what_is_unknown_or_absent_is_judged_without_a_guess() {
    let text = r#"
        @id("own") permit (principal, action == Action::"secret:reveal", resource)
        when { resource has owner && resource.owner == principal };
        @id("not-others") permit (principal, action == Action::"secret:show", resource)
        unless { resource has owner && resource.owner != principal };
        @id("all") permit (principal, action == Action::"secret:delete", resource);
    "#;
    let policy = load(&[("own.cedar", text)]).unwrap();
    let (mine, other) = (owner(7), owner(8));
    let known = |owner| Facts::Known { owner, labels: None };
    let facts =
        [known(Some(&mine)), known(Some(&other)), known(None), Facts::Absent, Facts::Unknown];
    let answers =
        |action| facts.map(|facts| policy.permit(&caller(7), action, &secret("s"), facts).is_ok());
    assert_eq!(answers(Action::SecretReveal), [true, false, false, true, false]);
    assert_eq!(answers(Action::SecretShow), [true, false, true, true, false]);
    assert_eq!(answers(Action::SecretDelete), [true; 5]);
    // No record needs to be read for what nobody may.
    let possible = |action| policy.may_permit(&caller(7), action, &secret("s")).is_ok();
    assert!(possible(Action::SecretReveal) && possible(Action::SecretShow));
    assert!(!possible(Action::SecretPut));
    let rests = |action, facts| {
        policy.permit(&caller(7), action, &secret("s"), facts).unwrap().rests_on_facts()
    };
    assert!(rests(Action::SecretReveal, Facts::Absent));
    assert!(!rests(Action::SecretDelete, Facts::Unknown));
}

#[test]
fn services_share_by_the_names_of_their_roles_and_by_label_and_not_otherwise() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy");
    let mut settings = settings(&directory);
    let shop = Binding { users: vec![NameOrId::Id(SERVICE)], groups: Vec::new() };
    settings.roles.insert("shop".to_owned(), shop);
    let both = settings.roles.get_mut("service").unwrap();
    both.users.push(NameOrId::Id(106));
    let policy = Policy::load(&settings).unwrap();
    assert_eq!(policy.warnings(), []);
    let none = Labels::default();
    let of_other =
        |uid, action, name: &str| may_of(&policy, uid, action, &secret(name), (Some(4711), &none));
    for action in
        [Action::SecretShow, Action::SecretPut, Action::SecretReveal, Action::SecretDelete]
    {
        assert!(of_other(SERVICE, action, "shop.stripe"), "{action}");
        assert!(!of_other(106, action, "shop.stripe"), "{action}");
        assert!(!of_other(SERVICE, action, "shopping"), "{action}");
        assert!(of_other(106, action, "service.common"), "{action}");
        assert!(!of_other(NOBODY, action, "service.common"), "{action}");
    }
    assert!(!of_other(SERVICE, Action::SecretTransfer, "shop.stripe"));
    // Nobody puts one's own where others look for theirs.
    let put = |uid, name: &str| {
        policy.permit(&caller(uid), Action::SecretPut, &secret(name), Facts::Absent).is_ok()
    };
    assert!(put(SERVICE, "shop.new") && !put(106, "shop.new") && put(106, "shopping"));
    let mut shared = Labels::default();
    shared.insert("shared", "services").unwrap();
    let decrypts = |labels| {
        may_of(&policy, SERVICE, Action::KeyDecrypt, &key("common"), (Some(OPERATOR), labels))
    };
    assert!(decrypts(&shared) && !decrypts(&none));
}

#[test]
fn a_permit_to_use_everything_is_worth_a_warning() {
    let warned = |text: &str| {
        let policy = load(&[("a.cedar", text)]).unwrap();
        let says: Vec<String> = policy.warnings().iter().map(Finding::to_string).collect();
        says.iter().any(|says| says.starts_with("a.cedar: a.cedar:policy0: its principals may "))
    };
    let scope = |head: &str, rest: &str| format!("permit (principal{head}, {rest};");
    let every = "action == Action::\"secret:reveal\", resource)";
    for wide in [
        scope("", "action, resource)"),
        scope(" in Role::\"service\"", every),
        scope(" == User::\"unix:7\"", every),
        scope("", "action in Action::\"use\", resource)"),
        scope("", "action == Action::\"key:decrypt\", resource is Key)"),
        scope("", &format!("{every} when {{ context.transport == \"unix\" }}")),
        scope("", &format!("{every} when {{ resource has owner }}")),
        scope("", &format!("{every} when {{ principal in Role::\"service\" }}")),
        scope("", "action == Action::\"secret:transfer\", resource)"),
    ] {
        assert!(warned(&wide), "{wide}");
    }
    for narrow in [
        scope("", "action == Action::\"key:encrypt\", resource)"),
        scope("", "action in Action::\"read\", resource)"),
        scope("", &format!("{every} when {{ resource.name like \"shop.*\" }}")),
        scope("", "action == Action::\"secret:reveal\", resource == Secret::\"s\")"),
        scope("", &format!("{every} when {{ resource has owner && resource.owner == principal }}")),
        scope("", &format!("{every} unless {{ resource has owner }}")),
        scope(
            "",
            "action == Action::\"key:decrypt\", resource) when { resource.hasTag(\"shared\") }",
        ),
    ] {
        assert!(!warned(&narrow), "{narrow}");
    }
}

#[test]
fn a_permit_says_what_it_is_for_and_recovery_has_its_own() {
    let text = r#"permit (principal, action == Action::"key:recover", resource == Key::"old");
        permit (principal, action == Action::"key:decrypt", resource);"#;
    let policy = load(&[("recovery.cedar", text)]).unwrap();
    let permit = |action| policy.permit(&caller(1), action, &key("old"), Facts::Unknown).unwrap();
    let decrypt = permit(Action::KeyDecrypt);
    assert_eq!((decrypt.caller(), decrypt.action()), (&caller(1), Action::KeyDecrypt));
    assert_eq!(decrypt.resource(), &key("old"));
    assert!(decrypt.for_recovery().is_none());
    assert!(permit(Action::KeyRecover).for_recovery().is_some());
    let system = Permit::of_system("sweep", Action::KeyDestroy, key("old"));
    assert_eq!(system.caller().name(), "system:sweep");
}

#[test]
fn parts_of_the_appliance_get_nothing_from_the_gate() {
    let everything = load(&[("all.cedar", "permit (principal, action, resource);")]).unwrap();
    let caller = Caller::System("sweep");
    let denied =
        everything.permit(&caller, Action::KeyDestroy, &key("a"), Facts::Unknown).unwrap_err();
    assert_eq!(denied.refusal(), &Refusal::NotACaller);
}

#[test]
fn explanations_name_the_policy_the_file_and_the_roles() {
    let policy = shipped();
    let explain = |uid, action, resource: Resource| {
        let asked = Asked { action, resource: &resource, facts: Facts::Unknown, key: None };
        policy.explain(&caller(uid), &asked).to_string()
    };
    assert_eq!(
        explain(SERVICE, Action::KeyEncrypt, key("payments")),
        "unix:103 may key:encrypt on key/payments\nroles: service\n\
         permitted by service-finds (service.cedar)\n"
    );
    assert_eq!(
        explain(NOBODY, Action::KeyDecrypt, key("payments")),
        "unix:104 may not key:decrypt on key/payments\nroles: none\n\
         because no policy permits it\n\
         also needs key:recover on key/payments where the version is deactivated or compromised: \
         not permitted, no policy permits it\n"
    );
    let policy = load(&[
        ("a.cedar", "permit (principal, action, resource);"),
        ("b.cedar", "forbid (principal, action, resource);"),
    ])
    .unwrap();
    let (action, resource) = (Action::Lock, &Resource::Appliance);
    let asked = Asked { action, resource, facts: Facts::Unknown, key: None };
    let explanation = policy.explain(&caller(OPERATOR), &asked);
    assert!(!explanation.permitted);
    assert_eq!(
        explanation.to_string(),
        "unix:101 may not appliance:lock on appliance\nroles: operator\n\
         forbidden by b.cedar:policy0 (b.cedar)\n"
    );
}

#[test]
fn a_policy_that_fails_counts_as_no() {
    let text = r#"
        permit (principal, action, resource);
        @id("overflows") forbid (principal, action, resource)
        when { context has uid && context.uid * 9223372036854775807 > 5 };
    "#;
    let policy = load(&[("a.cedar", text)]).unwrap();
    let denied =
        policy.permit(&caller(77), Action::Lock, &Resource::Appliance, Facts::Unknown).unwrap_err();
    assert!(matches!(denied.refusal(), Refusal::Failed(_)), "{:?}", denied.refusal());
}

#[test]
fn a_bad_file_is_told_with_its_line() {
    let good = ("good.cedar", "permit (principal, action, resource);");
    let bad = [
        ("permit (principal, action, resource)\n// no semicolon\n", "bad.cedar:", "unexpected end"),
        ("\n\npermit (principal, acton, resource);", "bad.cedar:3: ", "acton"),
        (
            "// first\npermit (\n  principal,\n  action == Action::\"key:decypt\",\n  resource\n);",
            "bad.cedar:4: ",
            "key:decypt",
        ),
        (
            "permit (principal, action, resource)\nwhen { resource.holder == 1 };",
            "bad.cedar:2: ",
            "holder",
        ),
        ("permit (principal in Group::\"a\", action, resource);", "bad.cedar:1: ", "Group"),
        ("permit (principal, action, resource) when { context.uid == 1 };", "bad.cedar:1: ", "uid"),
        ("permit (principal == ?principal, action, resource);", "bad.cedar: ", "slot"),
    ];
    for (text, place, says) in bad {
        let complaint = complaint(&[good, ("bad.cedar", text)]);
        assert!(complaint.starts_with(place), "{text}: {complaint}");
        assert!(complaint.contains(says), "{text}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
}

#[test]
fn every_finding_of_every_file_is_told_at_once() {
    let complaint = complaint(&[
        ("a.cedar", "permit (principal, action, resource) when { 1 };"),
        ("b.cedar", "nonsense"),
        ("c.cedar", "@id(\"same\") permit (principal, action, resource);"),
        ("d.cedar", "@id(\"same\") forbid (principal, action, resource);"),
    ]);
    for place in ["a.cedar:1: ", "b.cedar:1: ", "d.cedar: @id(\"same\") stands twice"] {
        assert!(complaint.contains(place), "{place} in {complaint}");
    }
}

#[test]
fn a_directory_that_is_not_there_or_that_all_can_write_is_refused() {
    let directory = directory(&[("a.cedar", "permit (principal, action, resource);")]);
    let missing = directory.path().join("missing");
    let error = Policy::load(&settings(&missing)).unwrap_err();
    assert!(matches!(&error, PolicyError::Directory { path, .. } if *path == missing), "{error}");
    let file = directory.path().join("a.cedar");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let error = Policy::load(&settings(directory.path())).unwrap_err();
    let is_of_it = |error: &PolicyError| matches!(error, PolicyError::Untrusted(Untrusted::Mode { path, .. }) if *path == file.canonicalize().unwrap());
    assert!(is_of_it(&error), "{error}");
}

#[test]
fn the_hash_changes_with_text_name_and_roles_and_with_nothing_else() {
    let text = "permit (principal, action, resource);";
    let hash = |files: &[(&str, &str)]| load(files).unwrap().hash().to_owned();
    let first = hash(&[("a.cedar", text)]);
    assert_eq!(first.len(), 64);
    assert_eq!(first, hash(&[("a.cedar", text), ("notes.txt", "x")]));
    assert_ne!(first, hash(&[("b.cedar", text)]));
    assert_ne!(first, hash(&[("a.cedar", &format!("{text}\n"))]));
    assert_ne!(first, hash(&[("a.cedar", text), ("b.cedar", "")]));
    let directory = directory(&[("a.cedar", text)]);
    let mut settings = settings(directory.path());
    settings.roles.get_mut("service").unwrap().users.push(NameOrId::Id(5));
    assert_ne!(first, Policy::load(&settings).unwrap().hash());
}

#[test]
fn a_role_that_no_policy_names_is_worth_a_warning() {
    let directory = directory(&[(
        "a.cedar",
        "permit (principal in Role::\"service\", action == Action::\"key:list\", resource);",
    )]);
    let mut settings = settings(directory.path());
    settings.roles = [("servcie".to_owned(), Binding::default())].into();
    let policy = Policy::load(&settings).unwrap();
    let says: Vec<String> = policy.warnings().iter().map(Finding::to_string).collect();
    assert_eq!(
        says,
        [
            "roles: the role \"servcie\" is given to somebody, but no policy names it; is \"service\" meant?"
        ]
    );
}

#[test]
fn more_questions_than_are_remembered_are_all_answered_right() {
    let text = r#"permit (principal, action, resource) when { resource has name && resource.name like "y*" };"#;
    let policy = load(&[("a.cedar", text)]).unwrap();
    for round in 0..2 {
        for number in 0..6000 {
            let (yes, no) = (secret(&format!("y{number}")), secret(&format!("n{number}")));
            assert!(may(&policy, 1, Action::SecretReveal, &yes), "{round} {number}");
            assert!(!may(&policy, 1, Action::SecretReveal, &no), "{round} {number}");
        }
    }
}
