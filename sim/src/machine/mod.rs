//! The machine under the simulated cluster: one thread at a time, virtual time, disks that forget.
//!
//! The product is not told that it is simulated. It uses threads, locks, clocks and files as it
//! always does, through the C library; this binary *is* that library's door ([`door`]): it defines
//! `clock_gettime`, `futex`, `pthread_create`, `fsync` and their kin itself, and the linker binds
//! every call of Rust's standard library, of tokio, parking_lot, lsm-tree and raft-engine to them.
//!
//! ```text
//!   a thread waits (lock, condition, sleep, fsync) ─► door ─► threads: who may run? whose turn?
//!                                                       └───► no one: the clock jumps to the next
//!                                                             deadline of anybody
//! ```
//!
//! * [`threads`]: a baton that one thread holds; it is handed on only where the holder waits, and
//!   the next holder is drawn by the seed. Killing a process means that its threads never get the
//!   baton again: no destructor runs, no file is closed politely, as under `kill -9`.
//! * [`disk`]: real files in memory, and beside them what a power cut would leave of each: what
//!   was synced, and of the rest what the seed lets through, torn where it likes.
//! * [`clock`]: one true time, and what each host takes it for.
//! * [`context`]: the handing on itself, stack by stack, without the kernel.
//! * [`heap`]: memory at the same addresses in every run.
//!
//! What is absent: no knowledge of Atoll. Time spent computing is not counted: the clock stands
//! still while anybody can run. Linux with glibc on x86-64 only.

#![allow(unsafe_code)]

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")))]
compile_error!("the simulator runs on Linux with glibc on x86-64; the product builds by `-p node`");

pub mod clock;
mod context;
pub mod disk;
mod door;
pub mod heap;
mod raw;
pub mod threads;

use std::os::fd::IntoRawFd;

/// The run's last word: threads of dead processes never end.
pub fn exit(code: i32) -> ! {
    raw::exit(code)
}

/// A file that stays open until the end.
pub fn leak_fd(file: std::fs::File) -> i32 {
    file.into_raw_fd()
}

/// How much a run gives way to builds and to the person who waits for one.
const NICENESS: i32 = 10;

/// The program itself at the same addresses in every run, and one core, on which a turn is handed
/// on faster. Starts this program once more if its addresses were drawn already.
pub fn fix_addresses(core: usize) -> std::io::Result<()> {
    // SAFETY: plain numbers and a set that lives on.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut cores);
        // Where there is no such core, the run is only slower.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &cores);
        // Threads that wake each other all the time would leave nothing to those that compute.
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
        let persona = libc::personality(0xffff_ffff);
        if persona & libc::ADDR_NO_RANDOMIZE != 0 {
            return Ok(());
        }
        if libc::personality(persona as libc::c_ulong | libc::ADDR_NO_RANDOMIZE as libc::c_ulong)
            < 0
        {
            return Err(std::io::Error::last_os_error());
        }
    }
    use std::os::unix::process::CommandExt;
    let mut again = std::process::Command::new(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).exec())
}
