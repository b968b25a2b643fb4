//! Which of its code paths the library takes for private operations: they differ in where they put copies of
//! a key, so whoever measures that says which path ran.
#![allow(unsafe_code)] // reads a variable of the library's
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // other processors have one path

use std::fmt;

/// How a modular exponentiation is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    /// Both primes at once in vectors of 52-bit limbs.
    Ifma,
    /// 64-bit multiplication with two carry chains.
    MulxAdx,
    /// Vectors of 29-bit limbs, for primes of 1024 bits alone.
    Avx2,
    Plain,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ifma => "AVX512-IFMA",
            Self::MulxAdx => "MULX and ADX",
            Self::Avx2 => "AVX2",
            Self::Plain => "plain multiplication",
        })
    }
}

/// The code path of private RSA operations in this process, in words.
pub fn code_path() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: no preconditions; after it, the library has looked at the processor.
        unsafe { aws_lc_sys::CRYPTO_library_init() };
        // SAFETY: the library wrote it before and never writes it again.
        let [_, _, features, _] = unsafe { CAPABILITIES };
        in_words(features)
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    /// What the library takes the processor for, with the mask of `OPENSSL_ia32cap` applied: CPUID's leaf 1
    /// (EDX, ECX) and leaf 7 (EBX, ECX). Its name has the version of `aws-lc-sys` in it: with another version
    /// the linker says which symbol is missing, and the name goes along.
    #[link_name = "aws_lc_0_47_0_OPENSSL_ia32cap_P"]
    static CAPABILITIES: [u32; 4];
}

/// From EBX of CPUID's leaf 7, as the library decides (`crypto/fipsmodule/bn/exponentiation.c`).
fn in_words(features: u32) -> String {
    const BMI1: u32 = 1 << 3;
    const AVX2: u32 = 1 << 5;
    const BMI2: u32 = 1 << 8;
    const ADX: u32 = 1 << 19;
    /// VL, BW, IFMA, DQ and F.
    const AVX512_IFMA: u32 = 1 << 31 | 1 << 30 | 1 << 21 | 1 << 17 | 1 << 16;
    let has = |wanted: u32| features & wanted == wanted;
    if has(AVX512_IFMA) {
        return Arithmetic::Ifma.to_string();
    }
    let larger = if has(BMI2 | ADX) { Arithmetic::MulxAdx } else { Arithmetic::Plain };
    if has(AVX2) && !has(BMI1 | BMI2 | ADX) {
        return format!("{} for RSA-2048, {larger} for larger keys", Arithmetic::Avx2);
    }
    larger.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_words() {
        let all = u32::MAX;
        assert_eq!(in_words(all), "AVX512-IFMA");
        assert_eq!(in_words(all & !0x0020_0000), "MULX and ADX");
        let avx2 = "AVX2 for RSA-2048, plain multiplication for larger keys";
        assert_eq!(in_words(all & !0x0028_0000), avx2);
        assert_eq!(in_words(all & !0x0028_0120), "plain multiplication");
        assert_eq!(in_words(0), "plain multiplication");
    }

    /// Without a mask, the library sees what the processor has.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_library_s_own_word_is_read() {
        use std::arch::is_x86_feature_detected as has;
        let wide = has!("avx512f") && has!("avx512dq") && has!("avx512bw") && has!("avx512vl");
        assert_eq!(code_path() == "AVX512-IFMA", wide && has!("avx512ifma"));
        let fast = has!("avx2") || (has!("bmi2") && has!("adx"));
        assert_eq!(code_path() == "plain multiplication", !fast);
    }
}
