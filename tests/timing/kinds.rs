//! Invalid ciphertexts of each kind, made from the public key: what stands inside is written first, with the
//! one defect that is wanted, and encrypted as a bare number (RFC 8017 §5.1.1).

use rsa::BigUint;
use rsa::traits::PublicKeyParts;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What is wrong with a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number drawn at random: mostly everything is wrong.
    Random,
    /// The first byte of the encoded message is not 0; all else is right.
    LeadingByte,
    /// The hash of another label.
    Label,
    /// The hash of the label, but for its first or last bit.
    LabelFirstBit,
    LabelLastBit,
    /// Nothing but zeros where a 1 has to come.
    NoSeparator,
    /// Something else than 0 before the 1.
    BadPadding,
    /// Right but for the label, with the longest message, or with none.
    LabelLongest,
    LabelShortest,
    /// Made with another hash in MGF1.
    OtherMgf,
    /// The numbers that are their own results (0, 1, n - 1), and numbers not below the modulus n.
    Zero,
    One,
    Last,
    TooLarge,
}

pub const KINDS: [(Kind, &str); 14] = [
    (Kind::Label, "the hash of another label"),
    (Kind::LeadingByte, "first byte not 0"),
    (Kind::LabelFirstBit, "label's hash, first bit"),
    (Kind::LabelLastBit, "label's hash, last bit"),
    (Kind::NoSeparator, "no 1 behind the padding"),
    (Kind::BadPadding, "padding not 0"),
    (Kind::LabelLongest, "other label, longest message"),
    (Kind::LabelShortest, "other label, no message"),
    (Kind::OtherMgf, "another hash in MGF1"),
    (Kind::Random, "a random number"),
    (Kind::Zero, "the number 0"),
    (Kind::One, "the number 1"),
    (Kind::Last, "the modulus less 1"),
    (Kind::TooLarge, "not below the modulus"),
];

/// Whether the public key is enough to tell that a ciphertext is of this kind.
pub fn is_plain(name: &str) -> bool {
    let plain = [Kind::Zero, Kind::One, Kind::Last, Kind::TooLarge];
    KINDS.iter().any(|(kind, known)| *known == name && plain.contains(kind))
}

/// Length of SHA-256 in bytes.
const HASH: usize = 32;

/// `count` ciphertexts of a kind.
pub fn ciphertexts(kind: Kind, key: &rsa::RsaPublicKey, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| ciphertext(kind, key)).collect()
}

fn ciphertext(kind: Kind, key: &rsa::RsaPublicKey) -> Vec<u8> {
    let length = key.size();
    let number = match kind {
        Kind::Random => BigUint::from_bytes_be(&random(length)) % key.n(),
        Kind::Zero => BigUint::from(0_u8),
        Kind::One => BigUint::from(1_u8),
        Kind::Last => key.n() - 1_u8,
        Kind::TooLarge => {
            // Above n, and not longer.
            let above = key.n() + BigUint::from_bytes_be(&random(8));
            assert!(above.to_bytes_be().len() == length);
            above
        }
        _ => {
            let message = BigUint::from_bytes_be(&encoded(kind, length));
            assert!(message < *key.n());
            message.modpow(key.e(), key.n())
        }
    };
    let bytes = number.to_bytes_be();
    [vec![0; length - bytes.len()], bytes].concat()
}

/// EM = Y ‖ maskedSeed ‖ maskedDB (RFC 8017 §7.1.1), with a defect.
fn encoded(kind: Kind, length: usize) -> Vec<u8> {
    let room = length - HASH - 1;
    let longest = room - HASH - 1;
    let message = match kind {
        Kind::LabelLongest => longest,
        Kind::LabelShortest => 0,
        _ => 32,
    };
    let mut block: Vec<u8> = Sha256::digest(b"").to_vec();
    block.resize(room - message - 1, 0);
    block.push(1);
    block.extend(random(message));
    let padding = HASH..room - message - 1;
    match kind {
        Kind::Label | Kind::LabelLongest | Kind::LabelShortest => {
            block[..HASH].copy_from_slice(&random(HASH));
        }
        Kind::LabelFirstBit => block[0] ^= 0x80,
        Kind::LabelLastBit => block[HASH - 1] ^= 1,
        Kind::NoSeparator => block[HASH..].fill(0),
        Kind::BadPadding => {
            let at = padding.start + usize::from(random(1)[0]) % padding.len();
            block[at] = 2 + random(1)[0] % 250;
        }
        _ => {}
    }
    let mut seed = random(HASH);
    let mgf: fn(&[u8], usize) -> Vec<u8> = match kind {
        Kind::OtherMgf => mgf1::<Sha1>,
        _ => mgf1::<Sha256>,
    };
    mask(&mut block, &mgf(&seed, room));
    mask(&mut seed, &mgf(&block, HASH));
    // Below the modulus, whose first bit is 1.
    let first = if kind == Kind::LeadingByte { 1 + random(1)[0] % 0x7f } else { 0 };
    [vec![first], seed, block].concat()
}

/// MGF1 (RFC 8017 §B.2.1).
fn mgf1<D: Digest>(seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0_u32..).map(|n| D::new().chain_update(seed).chain_update(n.to_be_bytes()));
    blocks.flat_map(|digest| digest.finalize().to_vec()).take(length).collect()
}

fn mask(bytes: &mut [u8], mask: &[u8]) {
    bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}

/// Made without a defect, it opens: the defects are what makes the others fail.
#[test]
fn what_is_made_without_a_defect_opens() {
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
    let public = key.to_public_key();
    let opens = |ciphertext: &[u8]| key.decrypt(rsa::Oaep::new::<Sha256>(), ciphertext).is_ok();
    let message = BigUint::from_bytes_be(&encoded_well(public.size()));
    let good = message.modpow(public.e(), public.n()).to_bytes_be();
    assert!(opens(&[vec![0; 256 - good.len()], good].concat()));
    for (kind, name) in KINDS {
        assert!(ciphertexts(kind, &public, 3).iter().all(|bad| !opens(bad)), "{name}");
    }
}

#[cfg(test)]
fn encoded_well(length: usize) -> Vec<u8> {
    // Two wrongs: the defect of this kind, undone.
    let mut block = encoded(Kind::LabelFirstBit, length);
    let (head, masked) = block.split_at_mut(1 + HASH);
    let (seed_before, masked_before) = (head[1..].to_vec(), masked.to_vec());
    let seed: Vec<u8> = {
        let mut seed = seed_before;
        mask(&mut seed, &mgf1::<Sha256>(&masked_before, HASH));
        seed
    };
    masked[0] ^= 0x80;
    let mut masked_seed = seed;
    mask(&mut masked_seed, &mgf1::<Sha256>(masked, HASH));
    head[1..].copy_from_slice(&masked_seed);
    block
}
