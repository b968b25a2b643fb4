//! The operation alone: RSA-2048 OAEP decryption on aws-lc-rs, and what OpenSSL says of the same key
//! size.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::report::{Figures, percentiles};

/// A key and something encrypted for it.
pub struct Key {
    key: OaepPrivateDecryptingKey,
    ciphertext: Vec<u8>,
}

impl Key {
    pub fn generate() -> Self {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("generated");
        let public = key.public_key();
        let public = PublicEncryptingKey::from_der(public.as_der().expect("DER").as_ref());
        let public = OaepPublicEncryptingKey::new(public.expect("a key")).expect("a key");
        let mut ciphertext = vec![0; public.ciphertext_size()];
        public
            .encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut ciphertext, None)
            .expect("encrypted");
        Self { key: OaepPrivateDecryptingKey::new(key).expect("a key"), ciphertext }
    }

    /// Decrypts for `time` on as many threads.
    pub fn decrypt(&self, threads: usize, time: Duration) -> Figures {
        let run = || {
            let mut out = vec![0; self.key.min_output_size()];
            self.for_a_while(&mut out, time / 10);
            let cpu = thread_cpu();
            let latencies = self.for_a_while(&mut out, time);
            (latencies, thread_cpu() - cpu)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it decrypts")).collect()
        });
        let cpu: Duration = results.iter().map(|(_, cpu)| *cpu).sum();
        figures(results.into_iter().flat_map(|(all, _)| all).collect(), cpu, time)
    }

    /// Decrypts for `time` on a thread that sleeps until it is woken for each operation, as a thread of a
    /// service with one caller does: what waking up costs whoever keeps the key in a process of its own.
    pub fn decrypt_woken(&self, time: Duration) -> Figures {
        let (asks, works) = UnixStream::pair().expect("a pair of sockets");
        let works_until_closed = move || {
            let (mut out, mut byte) = (vec![0; self.key.min_output_size()], [0]);
            let cpu = thread_cpu();
            while (&works).read(&mut byte).expect("received") == 1 {
                self.once(&mut out);
                (&works).write_all(&byte).expect("sent");
            }
            thread_cpu() - cpu
        };
        std::thread::scope(|scope| {
            let worker = scope.spawn(works_until_closed);
            let mut latencies = Vec::with_capacity(100_000);
            let start = Instant::now();
            while start.elapsed() < time {
                let asked = Instant::now();
                (&asks).write_all(&[0]).expect("sent");
                (&asks).read_exact(&mut [0]).expect("received");
                latencies.push(asked.elapsed().as_nanos() as u32);
            }
            asks.shutdown(Shutdown::Both).expect("closed");
            let cpu = worker.join().expect("it decrypts");
            figures(latencies, cpu, time)
        })
    }

    /// Nanoseconds that each operation took.
    fn for_a_while(&self, out: &mut [u8], time: Duration) -> Vec<u32> {
        let mut latencies = Vec::with_capacity(100_000);
        let start = Instant::now();
        let mut last = Duration::ZERO;
        while last < time {
            self.once(out);
            let now = start.elapsed();
            latencies.push((now - last).as_nanos() as u32);
            last = now;
        }
        latencies
    }

    fn once(&self, out: &mut [u8]) {
        let plaintext = self.key.decrypt(&OAEP_SHA256_MGF1SHA256, &self.ciphertext, out, None);
        assert_eq!(plaintext.expect("decrypted").len(), 32);
    }
}

fn figures(mut latencies: Vec<u32>, cpu: Duration, time: Duration) -> Figures {
    let count = latencies.len() as f64;
    let (p50_ms, p99_ms) = percentiles(&mut latencies);
    let cpu_ms = cpu.as_secs_f64() * 1e3 / count;
    Figures { per_second: count / time.as_secs_f64(), p50_ms, p99_ms, cpu_ms }
}

fn thread_cpu() -> Duration {
    cpu_of(UsageWho::RUSAGE_THREAD)
}

/// Processor time so far of this thread or process.
pub fn cpu_of(who: UsageWho) -> Duration {
    let usage = getrusage(who).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros as u64)
}

/// Private operations per second by `openssl speed rsa2048`; `None` where there is no openssl.
pub fn openssl() -> Option<f64> {
    let output =
        Command::new("openssl").args(["speed", "-mr", "-seconds", "2", "rsa2048"]).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("+F2:"))?;
    let found: f64 = line.split(':').nth(2)?.parse().ok()?;
    // Since OpenSSL 3 operations per second, before that seconds per operation.
    Some(if found < 1.0 { 1.0 / found } else { found })
}
