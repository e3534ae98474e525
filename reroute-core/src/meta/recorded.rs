//! Meta's machine as a recording has it.

use super::*;

/// All that Meta's machine is told once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub settings: Settings,
    /// What the store held, as lists: JSON has no other keys than text.
    pub logins: Vec<(HostId, Versioned)>,
    pub draining: Vec<(ScvmId, Draining)>,
    pub blocks: BlockList,
    /// The wall clock then: blocks end by it.
    pub wall: WallMs,
    pub driven: DrivenSettings,
    pub fence_command: Option<FenceCommandSettings>,
}

impl crate::recording::Machine for SessionMaster {
    const ROLE: &'static str = "meta";
    type Start = Start;
    type Input = Input;
    type Effect = Effect;

    fn begin(start: Start, now: BootNs) -> SessionMaster {
        let logins = start.logins.into_iter().collect();
        let draining = start.draining.into_iter().collect();
        let master = SessionMaster::new(start.settings, logins, now)
            .with_draining(draining)
            .with_blocks(start.blocks, start.wall, now)
            .with_driven(start.driven, now);
        match start.fence_command {
            Some(command) => master.with_fence_command(command),
            None => master,
        }
    }

    fn take(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        self.handle(input, now)
    }
}
