//! CLOCK_REALTIME of one running process, stepped, and of no other: nobody can step the clock of a node that shares its
//! kernel with others, and a time namespace has no wall clock of its own.
//!
//! A process reads its clocks by the vDSO, code that the kernel maps into it. The function there gives way to one that
//! asks the kernel and adds the step to what CLOCK_REALTIME says; its other clocks are what they were. The page is the
//! process's own from then on. Covered is all that asks by `clock_gettime` (Rust programs do nothing else);
//! `gettimeofday`, `time`, time stamps of files and timers that the kernel keeps by that clock are not. On x86-64 alone.

use anyhow::{Context, bail, ensure};
use object::{Object, ObjectSymbol};
use rustix::process::{Signal, pidfd_send_signal};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FUNCTION: &str = "__vdso_clock_gettime";
const WITHIN: Duration = Duration::from_secs(2);

/// A process whose wall clock has stepped.
pub struct Stepped {
    pid: u32,
    handle: Arc<OwnedFd>,
    at: u64,
    original: Vec<u8>,
}

/// Steps it by so many seconds, while the process stands still for a moment. Errors: it has ended; it has been stepped already.
pub fn step(pid: u32, handle: Arc<OwnedFd>, seconds: i64) -> anyhow::Result<Stepped> {
    ensure!(cfg!(target_arch = "x86_64"), "a process's clock can be stepped on x86-64 alone");
    let memory = memory(pid)?;
    let vdso = vdso(pid)?;
    let mut image = vec![0; (vdso.end - vdso.start) as usize];
    memory.read_exact_at(&mut image, vdso.start).context("the vDSO cannot be read")?;
    let parsed = object::File::parse(&*image).context("the vDSO cannot be understood")?;
    let function = parsed.dynamic_symbols().find(|s| s.name() == Ok(FUNCTION));
    let function = function.with_context(|| format!("no {FUNCTION} in the vDSO"))?;
    let code = stepping(seconds);
    ensure!(function.size() >= code.len() as u64, "{FUNCTION} is too short to be replaced");
    let offset = function.address() as usize;
    let original = image.get(offset..offset + code.len()).context("a symbol outside of the vDSO")?.to_vec();
    if original.starts_with(HEAD) {
        bail!("its clock has been stepped already");
    }
    let stepped = Stepped { pid, handle, at: vdso.start + offset as u64, original };
    stepped.put(&code)?;
    Ok(stepped)
}

impl Stepped {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Steps back. Errors: the process has ended.
    pub fn undo(&self) -> anyhow::Result<()> {
        self.put(&self.original)
    }

    fn put(&self, code: &[u8]) -> anyhow::Result<()> {
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            pidfd_send_signal(&*self.handle, Signal::STOP).context("the process has ended")?;
            let put = self.put_stopped(code);
            pidfd_send_signal(&*self.handle, Signal::CONT).context("the process has ended")?;
            if put.with_context(|| format!("the clock of process {}", self.pid))? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("process {} does not stand still outside of its vDSO", self.pid)
    }

    /// False: a thread is in the way, and goes on only when the process does.
    fn put_stopped(&self, code: &[u8]) -> anyhow::Result<bool> {
        for _ in 0..100 {
            if self.is_outside()? {
                memory(self.pid)?.write_all_at(code, self.at)?;
                return Ok(true);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(false)
    }

    /// Every thread stands still, and none of them in the code that is replaced.
    fn is_outside(&self) -> anyhow::Result<bool> {
        let vdso = vdso(self.pid)?;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let at = std::fs::read_to_string(task?.path().join("syscall")).unwrap_or_default();
            // "running", or numbers, the last of which is the instruction pointer.
            let pointer = at
                .trim()
                .rsplit(' ')
                .next()
                .and_then(|p| u64::from_str_radix(p.strip_prefix("0x")?, 16).ok());
            match pointer {
                Some(pointer) if !vdso.contains(&pointer) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn memory(pid: u32) -> anyhow::Result<File> {
    let file = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    file.with_context(|| format!("the memory of process {pid}"))
}

fn vdso(pid: u32) -> anyhow::Result<std::ops::Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|l| l.ends_with("[vdso]")).context("no vDSO")?;
    let (start, end) = line.split_whitespace().next().and_then(|r| r.split_once('-')).context("no range")?;
    Ok(u64::from_str_radix(start, 16)?..u64::from_str_radix(end, 16)?)
}

/// `mov $228, %eax; syscall`: clock_gettime. The clock's number stays in %edi.
const HEAD: &[u8] = &[0xb8, 228, 0, 0, 0, 0x0f, 0x05];

fn stepping(seconds: i64) -> Vec<u8> {
    let unless_realtime_return: [u8; 4] = [0x85, 0xff, 0x75, 13];
    let load_step: [u8; 2] = [0x48, 0xb9];
    let add_to_seconds_and_return: [u8; 4] = [0x48, 0x01, 0x0e, 0xc3];
    [HEAD, &unless_realtime_return, &load_step, &seconds.to_le_bytes(), &add_to_seconds_and_return].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn the_jump_leads_to_the_return() {
        let code = stepping(-3600);
        let after_jump = HEAD.len() + 4;
        assert_eq!(code[after_jump - 2], 0x75);
        assert_eq!(code[after_jump + usize::from(code[after_jump - 1])], 0xc3);
        assert_eq!(code.len(), after_jump + 14);
    }

    const ROUNDS: u32 = 4000;

    /// Wall clock and the clock that decides, ns, again and again.
    #[test]
    #[ignore = "started as a process by the test below"]
    fn tell_the_time() {
        for _ in 0..ROUNDS {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
            println!("time {wall} {}", reroute_agent::clock::now().0);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    struct Child(std::process::Child);
    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// How far the process's clocks are from ours, s, once its wall clock is about so far.
    fn until(lines: &mut impl Iterator<Item = std::io::Result<String>>, wall_s: i64) {
        for line in lines.map(|l| l.unwrap()).filter(|l| l.contains("time ")) {
            let told: Vec<i64> = line.split_whitespace().rev().take(2).map(|n| n.parse().unwrap()).collect();
            let own_wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
            let apart = |theirs: i64, ours: i64| (theirs - ours).div_euclid(1_000_000_000);
            let boot = apart(told[0], reroute_agent::clock::now().0 as i64);
            assert!((-5..=0).contains(&boot), "the other clock is as it was: {line}");
            if (wall_s - 5..=wall_s).contains(&apart(told[1], own_wall)) {
                return;
            }
        }
        panic!("never {wall_s} s apart");
    }

    #[test]
    fn the_wall_clock_of_one_process_steps_and_steps_back() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wall_clock::tests::tell_the_time", "--ignored", "--nocapture"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (pid, pidfd) = (child.id(), rustix::process::Pid::from_child(&child));
        let _child = Child(child);
        let handle = rustix::process::pidfd_open(pidfd, rustix::process::PidfdFlags::empty()).unwrap();
        let handle = Arc::new(handle);
        until(&mut lines, 0);
        let stepped = step(pid, handle.clone(), 3600).unwrap();
        assert!(step(pid, handle.clone(), 60).err().unwrap().to_string().contains("already"));
        until(&mut lines, 3600);
        stepped.undo().unwrap();
        until(&mut lines, 0);
        let stepped = step(pid, handle, -3600).unwrap();
        until(&mut lines, -3600);
        stepped.undo().unwrap();
        until(&mut lines, 0);
    }
}
