//! The network: each host a network namespace, all joined by a bridge in one more.
//!
//! Names and mounts live in the mount namespace of this process ([`enter`]), so that nothing is left of
//! them when it ends, however it ends.

use crate::shell;
use kiln_types::{Code, Context, Error, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set in the process that has its own mount namespace.
const INSIDE: &str = "KILN_FAULTS_INSIDE";
const HUB: &str = "hub";

/// What the harness needs: a program, and the Debian package that has it.
const PROGRAMS: [&str; 8] =
    ["ip", "tc", "nft", "nsenter", "unshare", "mount", "umount", "mkfs.ext4"];

/// Starts this program again in a mount namespace of its own, unless it is in it already.
///
/// # Errors
/// `Unsupported` when this machine does not allow that; otherwise it does not return, or is inside.
pub(crate) fn enter() -> Result<()> {
    let unsupported = |why: String| Error::new(Code::Unsupported, why);
    if std::env::var_os(INSIDE).is_none() {
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported("network namespaces need root".into()));
        }
        let missing = shell::missing(&PROGRAMS);
        if !missing.is_empty() {
            let packages = "iproute2, nftables, util-linux, mount and e2fsprogs have them";
            return Err(
                unsupported(format!("not installed: {}", missing.join(", "))).with_hint(packages)
            );
        }
        shell::run("unshare", "--mount --net true")
            .map_err(|error| unsupported(format!("no namespaces: {error}")))?;
        let program = std::env::current_exe().context("this program")?;
        let mut again = Command::new("unshare");
        again.args(["--mount", "--propagation", "private"]).arg(program);
        again.args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(again.exec()).context("unshare");
    }
    std::fs::create_dir_all("/run/netns").context("/run/netns")?;
    shell::run("mount", "-t tmpfs kiln-faults /run/netns")?;
    let works = Host { name: "probe".into(), address: Ipv4Addr::LOCALHOST };
    shell::run("ip", "netns add probe")
        .and_then(|_| works.limit("10mbit"))
        .and_then(|()| works.filter("probe", &["in numgen random mod 100 < 5 drop".into()]))
        .map_err(|error| unsupported(format!("this kernel lacks something: {error}")))?;
    shell::run("ip", "netns del probe").map(drop)
}

/// A machine of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
}

/// Makes hosts with these names, each of which reaches every other.
pub(crate) fn make(names: &[String]) -> Result<Vec<Host>> {
    shell::run("ip", &format!("netns add {HUB}"))?;
    shell::run("ip", &format!("-n {HUB} link add br0 type bridge"))?;
    shell::run("ip", &format!("-n {HUB} link set br0 up"))?;
    let make = |(number, name): (u8, &String)| {
        let address = Ipv4Addr::new(10, 77, 0, number);
        shell::run("ip", &format!("netns add {name}"))?;
        let pair = format!("link add port{number} type veth peer name eth0 netns {name}");
        shell::run("ip", &format!("-n {HUB} {pair}"))?;
        shell::run("ip", &format!("-n {HUB} link set port{number} master br0 up"))?;
        shell::run("ip", &format!("-n {name} addr add {address}/24 dev eth0"))?;
        shell::run("ip", &format!("-n {name} link set eth0 up"))?;
        shell::run("ip", &format!("-n {name} link set lo up"))?;
        Ok(Host { name: name.clone(), address })
    };
    (1..).zip(names).map(make).collect()
}

/// The device of a virtual machine.
pub(crate) const TAP: &str = "tap0";

/// Joins a virtual machine to the hosts that [`make`] made: where its QEMU runs, with the device [`TAP`], and
/// the address that its guest is to take.
pub(crate) fn join() -> Result<(Host, Ipv4Addr)> {
    shell::run("ip", &format!("-n {HUB} tuntap add {TAP} mode tap")).map_err(|error| {
        Error::new(Code::Unsupported, format!("no network for a virtual machine: {error}"))
    })?;
    shell::run("ip", &format!("-n {HUB} link set {TAP} master br0 up"))?;
    let host = Host { name: HUB.into(), address: Ipv4Addr::LOCALHOST };
    Ok((host, Ipv4Addr::new(10, 77, 0, 100)))
}

impl Host {
    /// A program that will run on this host.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace())).arg(program);
        command
    }

    fn namespace(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Moves the calling thread to this host: its sockets, and those of the threads that it starts.
    pub(crate) fn take_thread(&self) -> Result<()> {
        let namespace = File::open(self.namespace()).context(self.namespace())?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(std::io::Error::from)
            .context(self.namespace())
    }

    /// Filters what comes (`in RULE`) and goes (`out RULE`) until [`Self::unfilter`] with that name.
    pub(crate) fn filter(&self, name: &str, rules: &[String]) -> Result<()> {
        let mut script = format!("table inet {name} {{\n");
        for (chain, hook) in [("in", "input"), ("out", "output")] {
            let mine = rules.iter().filter_map(|rule| rule.strip_prefix(chain)?.strip_prefix(' '));
            let lines: String = mine.map(|rule| format!("{rule}\n")).collect();
            let spare = if chain == "in" { "iifname lo accept" } else { "oifname lo accept" };
            script += &format!("chain {chain} {{ type filter hook {hook} priority 0;\n");
            script += &format!("{spare}\n{lines}}}\n");
        }
        script += "}\n";
        shell::finish(self.command("nft").args(["-f", "-"]), &script).map(drop)
    }

    /// Ends a filter.
    pub(crate) fn unfilter(&self, name: &str) -> Result<()> {
        let mut command = self.command("nft");
        shell::finish(command.args(["delete", "table", "inet", name]), "").map(drop)
    }

    /// Limits what it can send, with a queue that then fills: everything is late.
    pub(crate) fn limit(&self, rate: &str) -> Result<()> {
        let device = if self.name == "probe" { "lo" } else { "eth0" };
        let queue =
            format!("qdisc replace dev {device} root tbf rate {rate} burst 64kb latency 300ms");
        shell::run("tc", &format!("-n {} {queue}", self.name)).map(drop)
    }

    /// Ends the limit.
    pub(crate) fn unlimit(&self) -> Result<()> {
        shell::run("tc", &format!("-n {} qdisc del dev eth0 root", self.name)).map(drop)
    }
}
