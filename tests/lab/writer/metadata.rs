//! The lane of UNSTABLE writes with COMMIT, and of CREATE, RENAME and REMOVE: one call outstanding, in cycles of
//! four writes, a commit, a create, a rename, and the removal of what was made eight cycles ago.
//!
//! A non-idempotent call that was sent again over a new connection may find its own work done: EEXIST for CREATE,
//! ENOENT for RENAME and REMOVE, accepted then and only then. Names are verified at the end.

use crate::block::{self, Header};
use crate::libnfs::{Handle, NFS3ERR_EXIST, NFS3ERR_NOENT, Op, Reply, UNSTABLE};
use crate::record::Kind;
use crate::ring::{Finding, Ring};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::path::Path;

const BATCH: usize = 4;
const KEEP: u64 = 8;
pub const SLOTS: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub completed: u64,
    pub commits: u64,
    /// Batches written again because the server's write verifier had changed.
    pub verifier_resends: u64,
    /// EEXIST and ENOENT for calls that were sent again over a new connection.
    pub retransmit_eexist: u64,
    pub retransmit_enoent: u64,
    /// The same without a reason, names missing and names too many.
    pub damage: u64,
    /// The first few of them, in words.
    pub damages: Vec<String>,
}

/// What the lane wants to be called next.
pub struct Call {
    pub op: Op,
    pub kind: Kind,
    pub seq: u64,
    pub offset: u64,
}

struct Write {
    slot: usize,
    seq: u64,
    verifier: Option<[u8; 8]>,
}

enum Step {
    Write(usize),
    Commit,
    Create,
    Rename,
    Remove,
}

pub struct Lane {
    dir: Handle,
    file: Handle,
    ring: Ring,
    writer: u64,
    cycle: u64,
    step: Step,
    batch: Vec<Write>,
    names: BTreeSet<String>,
    pub counts: Counts,
}

impl Lane {
    /// `dir` and `file`: the lane's own directory and its file for UNSTABLE writes, of which `ring` is the backing.
    pub fn new(dir: Handle, file: Handle, ring: Ring, writer: u64) -> Lane {
        let (batch, names, counts) = (Vec::new(), BTreeSet::new(), Counts::default());
        Lane { dir, file, ring, writer, cycle: 0, step: Step::Write(0), batch, names, counts }
    }

    /// The next call; `seq` numbers it if it is a new write.
    pub fn next(&mut self, seq: u64, at: u64) -> io::Result<(Call, Option<Finding>)> {
        let mut finding = None;
        let call = match self.step {
            Step::Write(index) => {
                if self.batch.len() == index {
                    let (slot, found) = self
                        .ring
                        .begin(seq, at)?
                        .ok_or_else(|| io::Error::other("no slot of the ring is free"))?;
                    finding = found;
                    self.batch.push(Write { slot, seq, verifier: None });
                }
                let write = &self.batch[index];
                let offset = Ring::offset(write.slot);
                let data = block::encode(Header { writer: self.writer, seq: write.seq, offset });
                let op = Op::Write { file: self.file.clone(), offset, data, stable: UNSTABLE };
                Call { op, kind: Kind::Unstable, seq: write.seq, offset }
            }
            Step::Commit => self.call(Op::Commit { file: self.file.clone() }, Kind::Commit),
            Step::Create => {
                self.call(Op::Create { dir: self.dir.clone(), name: name('f', self.cycle)? }, Kind::Create)
            }
            Step::Rename => {
                let (from, to) = (name('f', self.cycle)?, name('g', self.cycle)?);
                self.call(Op::Rename { dir: self.dir.clone(), from, to }, Kind::Rename)
            }
            Step::Remove => {
                let old = name('g', self.cycle.saturating_sub(KEEP))?;
                self.call(Op::Remove { dir: self.dir.clone(), name: old }, Kind::Remove)
            }
        };
        Ok((call, finding))
    }

    fn call(&self, op: Op, kind: Kind) -> Call {
        Call { op, kind, seq: self.cycle, offset: 0 }
    }

    /// The call was answered. `resent`: it went over more than one connection. False: it must be made again.
    pub fn completed(&mut self, reply: &Reply, resent: bool, at: u64) -> io::Result<(bool, Vec<Finding>)> {
        let mut findings = Vec::new();
        match (&self.step, reply) {
            (Step::Write(index), Reply::Written { count, verifier, .. })
                if *count as usize == block::SIZE =>
            {
                let index = *index;
                self.batch[index].verifier = Some(*verifier);
                self.step = if index + 1 < BATCH { Step::Write(index + 1) } else { Step::Commit };
            }
            (Step::Commit, Reply::Committed { verifier }) => {
                self.counts.commits += 1;
                if self.batch.iter().all(|w| w.verifier == Some(*verifier)) {
                    for write in std::mem::take(&mut self.batch) {
                        findings.extend(self.ring.acknowledged(write.slot, at)?);
                    }
                    self.step = Step::Create;
                } else {
                    self.counts.verifier_resends += 1;
                    self.step = Step::Write(0);
                }
            }
            (Step::Create, Reply::Done) => self.created(),
            (Step::Create, Reply::Status(NFS3ERR_EXIST)) => {
                if resent {
                    self.counts.retransmit_eexist += 1;
                } else {
                    self.damage(format!("CREATE f{}: EEXIST, sent only once", self.cycle));
                }
                self.created();
            }
            (Step::Rename, Reply::Done) => self.renamed(),
            (Step::Remove, Reply::Done) => self.removed(),
            (Step::Rename | Step::Remove, Reply::Status(NFS3ERR_NOENT)) => {
                let rename = matches!(self.step, Step::Rename);
                if resent {
                    self.counts.retransmit_enoent += 1;
                } else {
                    let what = if rename { "RENAME" } else { "REMOVE" };
                    self.damage(format!("{what} in cycle {}: ENOENT, sent only once", self.cycle));
                }
                if rename { self.renamed() } else { self.removed() }
            }
            _ => return Ok((false, findings)),
        }
        self.counts.completed += 1;
        Ok((true, findings))
    }

    fn created(&mut self) {
        self.names.insert(format!("f{}", self.cycle));
        self.step = Step::Rename;
    }

    fn renamed(&mut self) {
        self.names.remove(&format!("f{}", self.cycle));
        self.names.insert(format!("g{}", self.cycle));
        if self.cycle >= KEEP {
            self.step = Step::Remove;
        } else {
            self.next_cycle();
        }
    }

    fn removed(&mut self) {
        self.names.remove(&format!("g{}", self.cycle - KEEP));
        self.next_cycle();
    }

    fn next_cycle(&mut self) {
        self.cycle += 1;
        self.step = Step::Write(0);
    }

    fn damage(&mut self, what: String) {
        self.counts.damage += 1;
        if self.counts.damages.len() < 16 {
            self.counts.damages.push(what);
        }
    }

    pub fn check(&mut self, at: u64) -> io::Result<Vec<Finding>> {
        self.ring.check_all(at)
    }

    /// Compares the names in `dir` (the backing one) with what must be there. `outstanding`: the last call has no
    /// answer, so its own names may be either way.
    pub fn verify_names(&mut self, dir: &Path, outstanding: bool) -> io::Result<()> {
        let mut there = BTreeSet::new();
        for entry in std::fs::read_dir(dir)? {
            there.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        let cycle = self.cycle;
        let open = [format!("f{cycle}"), format!("g{cycle}"), format!("g{}", cycle.saturating_sub(KEEP))];
        let either = |name: &String| outstanding && open.contains(name);
        let missing: Vec<String> = self.names.difference(&there).filter(|n| !either(n)).cloned().collect();
        let stray: Vec<String> = there.difference(&self.names).filter(|n| !either(n)).cloned().collect();
        for name in missing {
            self.damage(format!("{name} is missing"));
        }
        for name in stray {
            self.damage(format!("{name} should not exist"));
        }
        Ok(())
    }
}

fn name(kind: char, cycle: u64) -> io::Result<CString> {
    CString::new(format!("{kind}{cycle}")).map_err(io::Error::other)
}
