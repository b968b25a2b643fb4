//! The locked arena. (Interim: plain heap, wiped on drop; the mapping replaces it behind the same names.)

use zeroize::Zeroize;

#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    #[error("the locked arena was not started in this process")]
    NotStarted,
    #[error("the locked arena is full")]
    Full,
    #[error("the kernel gave no random bytes")]
    Random,
}

/// A run of bytes in the arena, wiped when dropped.
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    pub fn zeroed(len: usize) -> Result<Self, ArenaError> {
        Ok(Self(vec![0; len].into_boxed_slice()))
    }
    pub fn copy_from(bytes: &[u8]) -> Result<Self, ArenaError> {
        let mut new = Self::zeroed(bytes.len())?;
        new.expose_mut().copy_from_slice(bytes);
        Ok(new)
    }
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
