//! Commands that userspace hands to the `control` program (BPF_PROG_TEST_RUN): the one way to change admission.
//!
//! The command is the packet; the program writes `result` and `word`, `in_progress`, `orphans` back into it.

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// [`MAGIC`].
    pub magic: u32,
    /// One of [`op`].
    pub op: u32,
    /// Client slot.
    pub client: u32,
    /// One of [`result`]; written by the program.
    pub result: u32,
    pub epoch: u64,
    /// [`op::RENEW`]: the new session deadline for hosts that pulse, boot ns. [`op::SERVER`]: the new incarnation.
    pub value: u64,
    /// [`op::RENEW`]: the new session deadline for clients without an agent, boot ns.
    pub value2: u64,
    /// Written by the program: the client's admission word, as it stands now.
    pub word: u64,
    /// Written by the program: calls of the client accepted and not answered, read after the word was set.
    pub in_progress: u32,
    /// Written by the program: calls whose connection is gone or was lost sight of.
    pub orphans: u32,
}

const _: () = assert!(size_of::<Command>() == 56);
crate::pod!(Command);

pub const MAGIC: u32 = 0x5252_4331;

pub mod op {
    /// Only read `word`, `in_progress`, `orphans`.
    pub const READ: u32 = 0;
    /// Raise the word to (epoch, ADMITTED).
    pub const ADMIT: u32 = 1;
    /// Raise the word to (epoch, FENCED).
    pub const FENCE: u32 = 2;
    /// Move both session deadlines forward (never back).
    pub const RENEW: u32 = 3;
    /// A new server process serves: forget calls in progress and orphans of *all* clients. Only after the old process was reaped.
    pub const SERVER: u32 = 4;
    /// Arm the timer of the timer map.
    pub const START_TIMER: u32 = 5;
}

pub mod result {
    pub const OK: u32 = 1;
    /// The word already stands beyond what was asked; nothing changed.
    pub const STALE: u32 = 2;
    /// Unknown operation, slot or magic.
    pub const INVALID: u32 = 3;
}
