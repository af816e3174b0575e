//! A cluster in one virtual machine, whose power can be cut.
//!
//! The guest's root is a view of the host's files (see `vm/`); each server's directory lies on a disk of
//! its own, with a volatile write cache. To clients it is one more host of their network.

use crate::access::Access;
use crate::command::Setting;
use crate::namespaces::{self, Host, TAP};
use crate::shell;
use crate::volatile::{Disk, Lost};
use kiln_env::Env;
use kiln_launch::{ClusterDir, Lock, Service, Wishes};
use kiln_types::{Context, Result, ServiceKind};
use std::fmt::Write;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What a disk may hold.
const CAPACITY: u64 = 1 << 30;
/// A server's disk: its store, and what a file system needs.
const DISK_BYTES: u64 = 1400 << 20;
const PORT: u16 = 7400;
const CLIENTS: [&str; 2] = ["client-1", "client-2"];
/// What `vm/fetch.sh` makes.
const READY: [&str; 3] = ["qemu", "vmlinuz", "initramfs.gz"];

pub(crate) struct Machine {
    pub(crate) access: Arc<Access>,
    host: Host,
    address: Ipv4Addr,
    /// The directory of [`READY`].
    vm: PathBuf,
    dir: ClusterDir,
    disks: Vec<(PathBuf, Disk)>,
    child: Option<Child>,
    _lock: Lock,
}

impl Machine {
    /// Makes a cluster and its disks, which may ignore flushes. Nothing runs yet.
    pub(crate) async fn make(setting: &Setting, vm: &Path, lies: bool, env: &Env) -> Result<Self> {
        let (path, program) = (&setting.dir, &setting.program);
        let (storage, replicas, disks, capacity) = (Some(3), Some(3), Some(1), Some(CAPACITY));
        let wishes = Wishes { storage, replicas, disks, capacity, ..Wishes::default() };
        let (dir, lock) = ClusterDir::take(path, &wishes, env).await?;
        let hosts = namespaces::make(&CLIENTS.map(String::from))?;
        let (host, address) = namespaces::join()?;
        let manager = format!("{address}:{PORT}");
        let (credential, program) = (dir.credential(), program.to_owned());
        let access = Arc::new(Access { hosts, manager, credential, program });
        let mut disks = Vec::new();
        for service in dir.services() {
            let image = path.join(format!("{}.img", service.name));
            let file = File::create(&image).context(image.display())?;
            file.set_len(DISK_BYTES).context(image.display())?;
            let from = path.join(&service.name);
            let options = "-q -F -m 0 -E lazy_itable_init=0,lazy_journal_init=0";
            shell::run(
                "mkfs.ext4",
                &format!("{options} -d {} {}", from.display(), image.display()),
            )?;
            let socket = image.with_extension("socket");
            let disk = Disk::serve(&image, &socket, lies, env)?;
            disks.push((socket, disk));
        }
        let machine =
            Self { access, host, address, vm: vm.to_owned(), dir, disks, child: None, _lock: lock };
        fs::write(machine.script(), machine.guest()).context(machine.script().display())?;
        Ok(machine)
    }

    /// What lacks in the directory of the machine's parts.
    pub(crate) fn lacking(vm: &Path) -> Option<&'static str> {
        READY.into_iter().find(|file| !vm.join(file).is_file())
    }

    fn script(&self) -> PathBuf {
        self.dir.path().join("guest.sh")
    }

    /// Where the servers log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.logs()
    }

    /// What the guest does: every server, again when it has ended.
    fn guest(&self) -> String {
        let (dir, address) = (self.dir.path().display(), self.address);
        let mut script = format!(
            "#!/bin/bash\nexec >/dev/ttyS0 2>&1\n\
             export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             ip link set lo up; ip link set eth0 up; ip addr add {address}/24 dev eth0\n\
             mount -t tmpfs run /run; mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm\n\
             mount -t 9p -o trans=virtio,version=9p2000.L,cache=none logs {dir}/logs\n"
        );
        for (letter, service) in ('a'..).zip(self.dir.services()) {
            let _ = writeln!(script, "mount /dev/vd{letter} {dir}/{}", service.name);
        }
        for (port, service) in (PORT..).zip(self.dir.services()) {
            script += &self.server(port, &service);
        }
        script + "wait\n"
    }

    fn server(&self, port: u16, service: &Service) -> String {
        let Access { program, manager, .. } = &*self.access;
        let mut command = format!(
            "{} {} --config {} --listen {}:{port}",
            program.display(),
            service.kind,
            self.dir.config(service).display(),
            self.address
        );
        if service.kind != ServiceKind::Mgmtd {
            let _ = write!(command, " --mgmtd {manager}");
        }
        if service.kind == ServiceKind::Storage {
            command += " --set io.memory=64MiB";
        }
        let (log, name) = (self.dir.log(&service.name), &service.name);
        let end = format!("echo \"{ENDED} {name}: $?\"; sleep 0.2");
        format!("while :; do {command}; {end}; done >>{} 2>&1 &\n", log.display())
    }

    /// Switches it on.
    pub(crate) fn boot(&mut self) -> Result<()> {
        let vm = self.vm.display();
        let mut options = format!(
            "-accel tcg,thread=multi -cpu max,-la57 -smp 2 -m 2G -nodefaults -no-user-config \
             -display none -no-reboot -kernel {vm}/vmlinuz -initrd {vm}/initramfs.gz \
             -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
             -device virtio-9p-pci,fsdev=root,mount_tag=root \
             -fsdev local,id=logs,path={logs},security_model=none \
             -device virtio-9p-pci,fsdev=logs,mount_tag=logs \
             -serial file:{logs}/console.log -device virtio-net-pci,netdev=net \
             -netdev tap,id=net,ifname={TAP},script=no,downscript=no",
            logs = self.dir.logs().display()
        );
        for (number, (socket, _)) in self.disks.iter().enumerate() {
            let socket = socket.display();
            let _ = write!(
                options,
                " -blockdev node-name=d{number},driver=nbd,server.type=unix,server.path={socket} \
                 -device virtio-blk-pci,drive=d{number},write-cache=on"
            );
        }
        // It does not outlive this process.
        let mut command = self.host.command("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.vm.join("qemu"));
        command.args(options.split_whitespace()).arg("-append");
        command.arg(format!("console=ttyS0 quiet panic=-1 guest={}", self.script().display()));
        let log = self.dir.logs().join("qemu.log");
        let output = File::options().create(true).append(true).open(&log).context(log.display())?;
        command.stdin(Stdio::null()).stderr(output.try_clone().context("a log")?).stdout(output);
        self.child = Some(command.spawn().context("start of the virtual machine")?);
        Ok(())
    }

    /// Whether it runs; it does not end by itself.
    pub(crate) fn runs(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        Ok(child.try_wait().context("the virtual machine")?.is_none())
    }

    /// Waits until one of its disks has something to lose, for a moment at most.
    pub(crate) async fn await_pending(&self, random: &mut fastrand::Rng, env: &Env) {
        let (_, disk) = &self.disks[random.usize(..self.disks.len())];
        let end = env.deadline_after(Duration::from_secs(2));
        while !disk.is_pending() && !end.passed(env.now()) {
            env.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Cuts its power: what each disk lost.
    pub(crate) fn cut(&mut self, random: &mut fastrand::Rng) -> Result<Vec<Lost>> {
        // The disks first, since the machine does not end at once.
        let lost = self.disks.iter().map(|(_, disk)| disk.cut(random)).collect();
        self.kill()?;
        lost
    }

    fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // The one error that can be is that it has ended.
        let _ = child.kill();
        child.wait().context("the end of the virtual machine").map(drop)
    }
}

/// What the guest logs when a server has ended.
pub(crate) const ENDED: &str = "ENDED BY ITSELF:";

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("kiln-power: {error}");
        }
    }
}
