//! The other replicas, reached through the routing information.

use kiln_memory::{Buffer, Bytes};
use kiln_net::{Call, ConnectionPool};
use kiln_types::{
    ChainId, ChunkVersion, Code, Deadline, Error, HeldPage, Result, RoutingInfo, TargetId,
};
use kiln_wire::{Body, Copied, Fill, Forward, Install, Name, Operation, WriteDone};
use std::sync::Arc;
use tokio::sync::watch;

/// Calls to the servers that have other targets.
pub struct Peers {
    connections: ConnectionPool,
    routing: watch::Receiver<Arc<RoutingInfo>>,
}

impl Peers {
    /// Peers as `routing` names them.
    pub fn new(
        connections: ConnectionPool,
        routing: watch::Receiver<Arc<RoutingInfo>>,
    ) -> Arc<Self> {
        Arc::new(Self { connections, routing })
    }

    /// Passes a write on to `to`; the answer comes when it is decided there.
    ///
    /// # Errors
    /// The successor's error, or the network's.
    pub async fn forward(
        &self,
        to: TargetId,
        forward: Forward,
        payload: Bytes,
        deadline: Deadline,
    ) -> Result<()> {
        let version = forward.version;
        let call = Call::new(Operation::Forward as u16, forward.encode(), deadline);
        let mut call = call.with_payload(payload);
        // Each replica waits for the one behind it: hops apart, they cannot wait in a circle.
        call.hop = self.place_in_chain(to, forward.name.chain);
        let answer = self.call(to, call).await?;
        let done = WriteDone::decode(&answer)?;
        if done.version == version {
            Ok(())
        } else {
            let text = format!("target {to} answered {} to version {version}", done.version);
            Err(Error::internal(text))
        }
    }

    /// Asks the commit point `to` which version of a chunk is committed.
    ///
    /// # Errors
    /// The commit point's error, or the network's.
    pub async fn committed_version(
        &self,
        to: TargetId,
        name: Name,
        deadline: Deadline,
    ) -> Result<ChunkVersion> {
        let mut call = Call::new(Operation::CommittedVersion as u16, name.encode(), deadline);
        call.hop = 1;
        Ok(WriteDone::decode(&self.call(to, call).await?)?.version)
    }

    /// A step of the walk that fills `to`.
    ///
    /// # Errors
    /// The target's error, or the network's.
    pub async fn fill(&self, to: TargetId, fill: Fill, deadline: Deadline) -> Result<HeldPage> {
        let mut call = Call::new(Operation::Fill as u16, fill.encode(), deadline);
        call.hop = self.place_in_chain(to, fill.chain);
        HeldPage::decode(&self.call(to, call).await?)
    }

    /// Makes a chunk at `to`, which is being filled, a copy.
    ///
    /// # Errors
    /// The target's error, or the network's.
    pub async fn install(
        &self,
        to: TargetId,
        install: Install,
        payload: Bytes,
        deadline: Deadline,
    ) -> Result<()> {
        let call = Call::new(Operation::Install as u16, install.encode(), deadline);
        let mut call = call.with_payload(payload);
        call.hop = self.place_in_chain(to, install.name.chain);
        self.call(to, call).await.map(drop)
    }

    /// The other targets of a chain that serve, as the routing information names them.
    pub fn others(&self, chain: ChainId, own: TargetId) -> Vec<TargetId> {
        let routing = self.routing.borrow();
        let serving = routing.chains.get(&chain).into_iter().flat_map(|chain| chain.serving());
        serving.filter(|target| *target != own).collect()
    }

    /// The committed version of a chunk at `to`, of at most `length` bytes, as it is there.
    ///
    /// # Errors
    /// The target's error, or the network's.
    pub async fn copy(
        &self,
        to: TargetId,
        name: Name,
        length: u32,
        deadline: Deadline,
    ) -> Result<(Copied, Bytes)> {
        let call = Call::new(Operation::Copy as u16, name.encode(), deadline);
        let mut call = call.with_receive(Buffer::zeroed(length as usize));
        call.hop = self.place_in_chain(to, name.chain);
        let answer = self.connections.call(&self.address_of(to)?, call).await?;
        let copy = Copied::decode(&answer.body)?;
        let bytes = answer.received.map_or_else(Bytes::empty, Buffer::freeze);
        Ok((copy, bytes))
    }

    /// Whether the server of `to` answers at all.
    ///
    /// # Errors
    /// The server's error, or the network's.
    pub async fn ping(&self, to: TargetId, deadline: Deadline) -> Result<()> {
        let mut call = Call::new(Operation::Ping as u16, Vec::new(), deadline);
        call.hop = u8::MAX;
        self.call(to, call).await.map(drop)
    }

    fn place_in_chain(&self, target: TargetId, chain: ChainId) -> u8 {
        let routing = self.routing.borrow();
        let members = routing.chains.get(&chain).map(|chain| &chain.members);
        let place = members.and_then(|members| members.iter().position(|m| m.target == target));
        place.map_or(1, |place| u8::try_from(place).unwrap_or(u8::MAX).max(1))
    }

    async fn call(&self, to: TargetId, call: Call) -> Result<Vec<u8>> {
        Ok(self.connections.call(&self.address_of(to)?, call).await?.body)
    }

    fn address_of(&self, target: TargetId) -> Result<String> {
        let routing = self.routing.borrow();
        let node = routing.node_of(target).ok_or_else(|| {
            Error::new(Code::UnknownMember, format!("no server has target {target}"))
        })?;
        Ok(node.address.clone())
    }
}
