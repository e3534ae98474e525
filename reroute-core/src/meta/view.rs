//! The session health view.

use super::SessionMaster;
use crate::ids::BootNs;
use crate::proto::{ClusterView, DrainView, HostView, LoginState, LoginView, SessionView};

impl SessionMaster {
    pub fn view(&self, now: BootNs) -> ClusterView {
        let sessions = self.settings.scvms.iter().filter_map(|info| {
            let s = self.sessions.get(&info.id)?;
            Some(SessionView {
                scvm: info.id,
                name: info.name.clone(),
                state: s.state,
                age_ns: now.since(s.since),
                keepalive_age_ns: s.renewed.map(|at| now.since(at)),
                incarnation: s.incarnation,
                health: s.health.clone(),
                reason: s.reason.clone(),
            })
        });
        let logins = self.hosts.values().filter_map(|h| {
            let login = h.record()?.login.clone();
            let does_not_cover = match login.state {
                LoginState::At { proof, .. } => proof.does_not_cover().to_string(),
                LoginState::Moving { .. } | LoginState::Evicted { .. } => String::new(),
            };
            let holder = self.holder(&login, now);
            Some(LoginView { login, age_ns: now.since(h.since), does_not_cover, holder, ghost: h.ghost })
        });
        let hosts = self.settings.hosts.iter().filter_map(|info| {
            let h = self.hosts.get(&info.id)?;
            Some(HostView {
                host: info.id,
                name: info.name.clone(),
                report: h.report.as_ref().map(|(r, _)| r.clone()),
                has_agent: h.has_agent,
                wants: h.calls.view(&self.settings.agentless, now),
                driven: self.driven_view(info.id, now),
                report_age_ns: h.report.as_ref().map(|(_, at)| now.since(*at)),
            })
        });
        ClusterView {
            cluster: self.settings.cluster.clone(),
            term: self.settings.term,
            sessions: sessions.collect(),
            logins: logins.collect(),
            hosts: hosts.collect(),
            draining: self
                .drains
                .iter()
                .map(|(scvm, draining)| DrainView { scvm: *scvm, draining: draining.clone() })
                .collect(),
            blocks: self.running_blocks(now),
            alarms: self.twins.alarms(now).into_iter().chain(self.driven_alarms(now)).collect(),
        }
    }
}
