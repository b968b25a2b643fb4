//! Another process of the front's user takes its descriptors away: it must not look as if it was well.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::appliance::Appliance;

#[test]
fn a_front_that_can_accept_nothing_does_not_keep_its_watchdog_happy() {
    let mut appliance = Appliance::prepared(|_| {});
    let manager = UnixDatagram::bind(appliance.path("notify")).expect("bound");
    manager.set_nonblocking(true).expect("set");
    let path = appliance.path("notify").display().to_string();
    appliance.set_environment("NOTIFY_SOCKET", &path);
    appliance.set_environment("WATCHDOG_USEC", "2000000");
    appliance.start();
    let beats = |during: Duration| {
        let (until, mut count) = (Instant::now() + during, 0);
        while Instant::now() < until {
            let mut message = [0; 256];
            while let Ok(read) = manager.recv(&mut message) {
                count += usize::from(message[..read].starts_with(b"WATCHDOG=1"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        count
    };
    assert!(beats(Duration::from_secs(4)) >= 2, "it beats while it is well");
    let pid = format!("--pid={}", appliance.front_pid());
    let limited = std::process::Command::new("prlimit").args([&pid, "--nofile=8:8"]).status();
    assert!(limited.expect("prlimit is installed").success());
    beats(Duration::from_secs(6));
    assert_eq!(beats(Duration::from_secs(4)), 0);
}
