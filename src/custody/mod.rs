//! The cryptographic boundary: the only place where a private key is in the clear.

pub mod rsa;
