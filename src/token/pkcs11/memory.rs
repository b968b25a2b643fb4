//! A few bytes that the token keeps: a private data object (PKCS#11 §4.5), found by its label.
//!
//! It is never changed in place: a new one is made, then the older ones are destroyed, so that a process or
//! a machine that ends in between leaves at least one whole.
//!
//! Beside it lies a public object, which can be read without a login: it tells that custody has worked with this
//! token, and is never removed.

use cryptoki::{
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{failure::Failure, sessions::require_login};

const LABEL: &[u8] = b"strongroom checkpoint";
const APPLICATION: &[u8] = b"strongroom";

/// The label of the public object.
const USED: &[u8] = b"strongroom custody";

/// The values of all that are there.
pub(super) fn read(session: &Session) -> Result<Vec<Vec<u8>>, Failure> {
    let mut values = Vec::new();
    for object in find(session)? {
        let attributes = session.get_attributes(object, &[AttributeType::Value])?;
        if let Some(Attribute::Value(value)) = attributes.into_iter().next() {
            values.push(value);
        }
    }
    Ok(values)
}

/// Makes a new one, and destroys those before it.
pub(super) fn replace(session: &Session, bytes: Option<&[u8]>) -> Result<(), Failure> {
    let older = find(session)?;
    if let Some(bytes) = bytes {
        leave_mark(session)?;
        session.create_object(&[
            Attribute::Class(ObjectClass::DATA),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Modifiable(false),
            Attribute::Label(LABEL.to_vec()),
            Attribute::Application(APPLICATION.to_vec()),
            Attribute::Value(bytes.to_vec()),
        ])?;
    }
    Ok(older.into_iter().try_for_each(|object| session.destroy_object(object))?)
}

/// Whether custody has worked with this token, as far as anybody can see who is not logged in.
pub(super) fn was_used(session: &Session) -> Result<bool, Failure> {
    Ok(!session.find_objects(&mark())?.is_empty())
}

fn leave_mark(session: &Session) -> Result<(), Failure> {
    if was_used(session)? {
        return Ok(());
    }
    let mut template = mark().to_vec();
    template.extend([
        Attribute::Private(false),
        Attribute::Modifiable(false),
        Attribute::Application(APPLICATION.to_vec()),
        Attribute::Value(b"strongroom custody 1\n".to_vec()),
    ]);
    session.create_object(&template)?;
    Ok(())
}

fn mark() -> [Attribute; 3] {
    [Attribute::Class(ObjectClass::DATA), Attribute::Token(true), Attribute::Label(USED.to_vec())]
}

fn find(session: &Session) -> Result<Vec<ObjectHandle>, Failure> {
    let found = session.find_objects(&[
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(LABEL.to_vec()),
    ])?;
    if found.is_empty() {
        require_login(session)?;
    }
    Ok(found)
}
