//! Puts a device on a path: by mount(2), or by fusermount3 for a user who may not call that.

use super::device::Device;
use kiln_types::{Code, Error, Result};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The type of our mounts in /proc/mounts, after "fuse.".
pub(crate) const SUBTYPE: &str = "kiln";

const HELPER: &str = "fusermount3";
/// How long it may take.
const HELPED_WITHIN: Duration = Duration::from_secs(30);

/// How a file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// What `df` and `mount` show as its source.
    pub source: String,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users see it, too.
    pub allow_other: bool,
    /// Set-user-id bits count.
    pub suid: bool,
    /// Programs cannot be run.
    pub no_exec: bool,
}

/// Mounts on `path` what will be served by the device that is returned.
///
/// # Errors
/// `Local` when the kernel or the helper refuses.
pub(super) fn attach(path: &Path, options: &MountOptions) -> Result<Device> {
    let device = Device::open()?;
    match directly(&device, path, options) {
        Ok(()) => Ok(device),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => by_helper(path, options),
        Err(error) => Err(refused(path, &error.to_string())),
    }
}

fn refused(path: &Path, why: &str) -> Error {
    let message = format!("cannot mount on {}: {}", path.display(), why.trim());
    let error = Error::new(Code::Local, message);
    if why.contains("user_allow_other") {
        return error
            .with_hint("root allows it with the line 'user_allow_other' in /etc/fuse.conf");
    }
    error
}

fn directly(device: &Device, path: &Path, options: &MountOptions) -> io::Result<()> {
    let mut flags = MountFlags::NOATIME | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NOEXEC, options.no_exec);
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},{}",
        device.as_fd().as_raw_fd(),
        fs::metadata(path)?.mode(),
        user.as_raw(),
        group.as_raw(),
        common(options)
    );
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(&options.source, path, "fuse", flags, data.as_c_str())?)
}

/// Options that both ways take as text.
fn common(options: &MountOptions) -> String {
    let others = if options.allow_other { ",allow_other" } else { "" };
    format!("subtype={SUBTYPE},default_permissions{others}")
}

fn helper_options(options: &MountOptions) -> String {
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let chosen = [
        if options.read_only { "ro" } else { "rw" },
        if options.suid { "suid" } else { "nosuid" },
        if options.no_exec { "noexec" } else { "exec" },
    ];
    format!("fsname={source},noatime,nodev,{},{}", chosen.join(","), common(options))
}

fn by_helper(path: &Path, options: &MountOptions) -> Result<Device> {
    let failed = |error: io::Error| refused(path, &format!("{HELPER}: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(HELPED_WITHIN)).map_err(failed)?;
    let helper = start_helper(theirs.into(), path, options).map_err(|error| {
        let failed = failed(error);
        failed.with_hint("mounting needs root (CAP_SYS_ADMIN in a container) or the package fuse3")
    })?;
    let received = receive(&ours);
    let said = end_helper(helper, received.is_err()).map_err(failed)?;
    match received.map_err(failed)? {
        Some(device) => Ok(Device::from(device)),
        None => Err(refused(path, &said)),
    }
}

/// It sends the device over the socket that its standard input is.
fn start_helper(socket: OwnedFd, path: &Path, options: &MountOptions) -> io::Result<Child> {
    let mut command = Command::new(HELPER);
    command.arg("-o").arg(helper_options(options)).arg("--").arg(path);
    command.env("_FUSE_COMMFD", "0").stdin(Stdio::from(socket));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

/// What it said.
fn end_helper(mut helper: Child, is_late: bool) -> io::Result<String> {
    if is_late {
        helper.kill()?;
    }
    let output = helper.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `None` when it sent nothing.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => {
                received?;
                break;
            }
        }
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.next().and_then(|mut sent| sent.next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_told_all_options_and_a_source_with_commas() {
        let source = "kiln@a,b:/".to_string();
        let options = MountOptions { source, allow_other: true, ..MountOptions::default() };
        assert_eq!(
            helper_options(&options),
            "fsname=kiln@a\\,b:/,noatime,nodev,rw,nosuid,exec,\
             subtype=kiln,default_permissions,allow_other"
        );
        let others = MountOptions { read_only: true, suid: true, no_exec: true, ..options };
        assert!(helper_options(&others).contains(",ro,suid,noexec,"));
    }
}
