//! For tests: directories that go away, and a cluster's configuration on this machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory of its own, removed when dropped.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(name: &str) -> Dir {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("reroute-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file system of so many KiB that ends with the test and that no other one sees. Needs root.
#[allow(unsafe_code)]
pub fn small_disk(kib: u32, test: impl FnOnce(&Path) + Send) {
    let dir = Dir::new("disk");
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new("mount").args(arguments).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
    };
    let on_it = || {
        // SAFETY: CLONE_NEWNS shares or unshares no file descriptors, and only this thread moves.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        mount(&["--make-rprivate", "/"]);
        mount(&["-t", "tmpfs", "-o", &format!("size={kib}k"), "small", &dir.path().to_string_lossy()]);
        test(dir.path());
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(on_it).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A port nobody listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The configuration of a cluster of one host and three SCVMs (storage, kill, storage), with Meta here.
pub fn config(dir: &Dir, id: &str, ports: &[u16], more: &str) -> crate::config::Config {
    let d = dir.path().display();
    std::fs::write(dir.path().join("key"), "ab".repeat(32)).unwrap();
    let meta: Vec<String> = ports.iter().map(|p| format!("\"127.0.0.1:{p}\"")).collect();
    let meta = meta.join(", ");
    let mut text = format!(
        "[cluster]\nid = \"{id}\"\nkey_file = \"{d}/key\"\nservice_address = \"192.168.33.2\"\nmeta = [{meta}]\n\
         [[cluster.hosts]]\nid = 1\nname = \"x\"\nprivate = \"192.168.33.1\"\nstorage = \"10.0.0.101\"\n\
         management = \"10.1.0.101\"\nlocal_scvm = 1\n"
    );
    for (i, policy) in [(1, "storage"), (2, "kill"), (3, "storage")] {
        text += &format!(
            "[[cluster.scvms]]\nid = {i}\nname = \"s{i}\"\nstorage = \"10.0.0.{i}\"\nmanagement = \"10.1.0.{i}\"\n\
             server = {{ name = \"nfsd\", pidfile = \"/run/nfsd.pid\", policy = \"{policy}\" }}\n"
        );
    }
    text +=
        &format!("[meta]\nlisten = [{meta}]\nstate_dir = \"{d}/meta\"\nsocket = \"{d}/meta.sock\"\n{more}");
    let path = dir.path().join(format!("{id}.toml"));
    std::fs::write(&path, text).unwrap();
    crate::config::Config::load(&path).unwrap()
}
