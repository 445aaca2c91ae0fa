//! The kernel's nbd driver over generic netlink: CONNECT, RECONFIGURE, DISCONNECT.
//!
//! Source: `include/uapi/linux/nbd-netlink.h` and `drivers/block/nbd.c`. The
//! driver kills a device's sockets when the netlink socket that connected it
//! closes (on the newest kernels): keep the [`Nbd`] as long as the device.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use neli::consts::genl::NlAttrType;
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::err::RouterError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::NlPayload;
use neli::router::synchronous::NlRouter;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use neli::{Size, ToBytes, neli_enum};
use nix::errno::Errno;

use super::handover::again;

/// `NBD_GENL_VERSION`.
const VERSION: u8 = 1;

/// `NETLINK_GENERIC` of linux/netlink.h.
const NETLINK_GENERIC: u32 = 16;

/// Commands of the family `nbd`.
#[neli_enum(serialized_type = "u8")]
pub enum NbdCmd {
    /// `NBD_CMD_CONNECT`
    Connect = 1,
    /// `NBD_CMD_DISCONNECT`
    Disconnect = 2,
    /// `NBD_CMD_RECONFIGURE`
    Reconfigure = 3,
}
impl neli::consts::genl::Cmd for NbdCmd {}

/// Attributes of those commands; `NBD_ATTR_*`.
#[neli_enum(serialized_type = "u16")]
pub enum NbdAttr {
    /// u32
    Index = 1,
    /// u64
    SizeBytes = 2,
    /// u64
    BlockSizeBytes = 3,
    /// u64, seconds
    Timeout = 4,
    /// u64, the transmission flags of the NBD protocol
    ServerFlags = 5,
    /// u64
    ClientFlags = 6,
    /// nested
    Sockets = 7,
    /// u64, seconds
    DeadConnTimeout = 8,
    /// string
    BackendIdentifier = 10,
}
impl NlAttrType for NbdAttr {}

/// What stands inside of [`NbdAttr::Sockets`]: `NBD_SOCK_ITEM`, and in it
/// `NBD_SOCK_FD`.
#[neli_enum(serialized_type = "u16")]
pub enum NbdSock {
    /// Both levels use 1: `NBD_SOCK_ITEM` (nested) and `NBD_SOCK_FD` (u32).
    ItemOrFd = 1,
}
impl NlAttrType for NbdSock {}

/// A connection to the nbd driver.
pub struct Nbd {
    router: NlRouter,
    family: u16,
}

/// What a device is connected with.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    /// The device's number; the kernel chooses or makes one if there is none.
    pub index: Option<u32>,
    /// Size in bytes, a multiple of the block size.
    pub size: u64,
    /// Logical block size in bytes, a power of two from 512 to 4096.
    pub block_size: u32,
    /// The transmission flags of the NBD protocol.
    pub server_flags: u16,
    /// For how many seconds requests wait for [`Nbd::reconnect`] once the other end of
    /// the socket is gone; 0: they fail.
    pub dead_connection: u64,
    /// Names the backend; shown in `/sys/block/nbdN/backend`.
    pub backend: &'a str,
}

/// Why the driver did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("the kernel's nbd driver refused: {}", .0.desc())]
    Refused(Errno),
    /// There is no nbd driver, or netlink does not work.
    #[error("cannot talk to the kernel's nbd driver: {0}")]
    Broken(String),
}

type Attrs = GenlBuffer<NbdAttr, Buffer>;

impl Nbd {
    /// Finds the driver. The module must be loaded.
    pub fn open() -> Result<Nbd, NetlinkError> {
        let (router, _) =
            NlRouter::connect(NlFamily::Generic, None, Groups::empty()).map_err(broken)?;
        let family = router.resolve_genl_family("nbd").map_err(broken)?;
        Ok(Nbd { router, family })
    }

    /// The netlink socket itself, once more, for the program that goes on with the
    /// device: the newest kernels end a device when the last descriptor of the socket
    /// that connected it is closed. `None`: it cannot be found.
    pub fn socket(&self) -> Option<OwnedFd> {
        let table = fs::read_to_string("/proc/self/net/netlink").ok()?;
        let ours = generic_sockets(&table);
        let descriptors = fs::read_dir("/proc/self/fd").ok()?;
        descriptors.flatten().find_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            let inode = inode.strip_suffix(']')?.parse().ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            ours.contains(&inode).then(|| again(number).ok())?
        })
    }

    /// Gives a socket to the driver, and returns the device's number. One socket
    /// and timeout 0: the driver waits for an answer as long as it takes. The
    /// calling thread is the one that `/sys/block/nbdN/pid` shows.
    pub fn connect(
        &self,
        connect: &Connect<'_>,
        socket: BorrowedFd<'_>,
    ) -> Result<u32, NetlinkError> {
        let mut attrs = Attrs::new();
        if let Some(index) = connect.index {
            attrs.push(attr(NbdAttr::Index, index)?);
        }
        attrs.push(attr(NbdAttr::SizeBytes, connect.size)?);
        attrs.push(attr(
            NbdAttr::BlockSizeBytes,
            u64::from(connect.block_size),
        )?);
        // Always sent: teardown does not reset what an earlier user had set.
        attrs.push(attr(NbdAttr::Timeout, 0u64)?);
        attrs.push(attr(NbdAttr::DeadConnTimeout, connect.dead_connection)?);
        attrs.push(attr(NbdAttr::ServerFlags, u64::from(connect.server_flags))?);
        attrs.push(attr(NbdAttr::ClientFlags, 0u64)?);
        attrs.push(sockets(socket)?);
        attrs.push(attr(NbdAttr::BackendIdentifier, connect.backend)?);
        let index = self.call(NbdCmd::Connect, attrs)?;
        index.or(connect.index).ok_or_else(|| {
            NetlinkError::Broken("it did not say which device it connected".to_owned())
        })
    }

    /// Gives a device whose socket is dead another one. If none is dead, the driver drops
    /// the new one without a word. `dead_connection` as in [`Connect`].
    pub fn reconnect(
        &self,
        index: u32,
        backend: &str,
        dead_connection: u64,
        socket: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut attrs = Attrs::new();
        attrs.push(attr(NbdAttr::Index, index)?);
        attrs.push(attr(NbdAttr::DeadConnTimeout, dead_connection)?);
        attrs.push(sockets(socket)?);
        attrs.push(attr(NbdAttr::BackendIdentifier, backend)?);
        self.call(NbdCmd::Reconfigure, attrs).map(drop)
    }

    /// Disconnects a device. There is no busy check: what a file system on it has
    /// not written is lost.
    pub fn disconnect(&self, index: u32) -> Result<(), NetlinkError> {
        let mut attrs = Attrs::new();
        attrs.push(attr(NbdAttr::Index, index)?);
        self.call(NbdCmd::Disconnect, attrs).map(drop)
    }

    /// Sends a command and waits for its end; the index that it answered, if any.
    fn call(&self, command: NbdCmd, attrs: Attrs) -> Result<Option<u32>, NetlinkError> {
        let message = GenlmsghdrBuilder::default()
            .cmd(command)
            .version(VERSION)
            .attrs(attrs)
            .build()
            .map_err(broken)?;
        let answers = self
            .router
            .send::<_, _, u16, Genlmsghdr<NbdCmd, NbdAttr>>(
                self.family,
                NlmF::ACK,
                NlPayload::Payload(message),
            )
            .map_err(broken)?;
        let mut index = None;
        for answer in answers {
            let answer = answer.map_err(explain)?;
            if let Some(payload) = answer.get_payload() {
                let handle = payload.attrs().get_attr_handle();
                index = handle
                    .get_attr_payload_as::<u32>(NbdAttr::Index)
                    .ok()
                    .or(index);
            }
        }
        Ok(index)
    }
}

impl std::fmt::Debug for Nbd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nbd")
            .field("family", &self.family)
            .finish_non_exhaustive()
    }
}

/// The inodes of the sockets of `NETLINK_GENERIC` in the kernel's table of netlink
/// sockets: its second column is the protocol, its last the inode.
fn generic_sockets(table: &str) -> Vec<u64> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let protocol: u32 = columns.get(1)?.parse().ok()?;
        let inode = columns.last()?.parse().ok()?;
        (protocol == NETLINK_GENERIC).then_some(inode)
    });
    rows.collect()
}

fn attr<P: Size + ToBytes>(
    kind: NbdAttr,
    payload: P,
) -> Result<Nlattr<NbdAttr, Buffer>, NetlinkError> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .build()
        .map_err(broken)?;
    NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(payload)
        .build()
        .map_err(broken)
}

/// `SOCKETS { SOCK_ITEM { SOCK_FD fd } }`.
fn sockets(socket: BorrowedFd<'_>) -> Result<Nlattr<NbdAttr, Buffer>, NetlinkError> {
    let fd = NlattrBuilder::default()
        .nla_type(
            AttrTypeBuilder::default()
                .nla_type(NbdSock::ItemOrFd)
                .build()
                .map_err(broken)?,
        )
        .nla_payload(socket.as_raw_fd() as u32)
        .build()
        .map_err(broken)?;
    nest(NbdAttr::Sockets, &nest(NbdSock::ItemOrFd, &fd)?)
}

fn nest<K: NlAttrType, I: NlAttrType, P: Size + ToBytes>(
    kind: K,
    inner: &Nlattr<I, P>,
) -> Result<Nlattr<K, Buffer>, NetlinkError> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .nla_nested(true)
        .build()
        .map_err(broken)?;
    let outer = NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(Buffer::new())
        .build()
        .map_err(broken)?;
    outer.nest(inner).map_err(broken)
}

fn broken(error: impl std::fmt::Display) -> NetlinkError {
    NetlinkError::Broken(error.to_string())
}

fn explain<T: std::fmt::Debug, P: std::fmt::Debug>(error: RouterError<T, P>) -> NetlinkError
where
    RouterError<T, P>: std::fmt::Display,
{
    match &error {
        RouterError::Nlmsgerr(refusal) => {
            NetlinkError::Refused(Errno::from_raw(refusal.error().abs()))
        }
        _ => NetlinkError::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_other_protocols_are_others() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                     0000000000000000 0   785        00000000 0        0        0     2        0        17\n\
                     0000000000000000 16  1342       00000000 0        0        0     2        0        4711\n\
                     garbage\n";
        assert_eq!(generic_sockets(table), [4711]);
        assert!(generic_sockets("").is_empty());
    }
}
