//! The one UDP socket that a process dials from and answers on.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{info, warn};

use crate::metrics::Metrics;

pub(crate) const ALPN: &[u8] = b"shoal-peer/3";
/// Asked of the kernel, which may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// quinn sends ten segments at once; ten times more than this is past what UDP can carry, and the
/// kernel's refusal would be swallowed.
const MTU_MAX: u16 = 6500;
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const IDLE_MS_MAX: u32 = 4_000;
/// Requests that one peer may have open here.
const STREAMS_PER_PEER_MAX: u32 = 32;
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Written to one connection and not acknowledged. What all of them keep together is bounded by
/// `shoal_swarm::UNACKNOWLEDGED_BYTES_MAX`.
pub(crate) const SEND_WINDOW_BYTES: u64 = 10 * 1024 * 1024;

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    transport
        .ack_frequency_config(Some(acks))
        .mtu_discovery_config(Some(mtu))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS_MAX))))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_PEER_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES);
    transport
}

/// Binds and configures; says in the log where the kernel lacks offload.
pub(crate) fn open(
    listen: SocketAddr,
    mut server: quinn::ServerConfig,
    mut client: quinn::ClientConfig,
    metrics: &Metrics,
) -> io::Result<quinn::Endpoint> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    for result in [
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES),
    ] {
        if let Err(error) = result {
            warn!(%error, "the socket buffers stay small");
        }
    }
    socket.bind(&listen.into())?;
    let socket = TokioRuntime.wrap_udp_socket(UdpSocket::from(socket))?;
    let segments = socket.max_transmit_segments();
    metrics.gso_segments.set(segments as i64);
    if segments > 1 {
        info!(segments, "the kernel takes datagrams in batches");
    } else {
        warn!(
            "the kernel takes no batches of datagrams (GSO); transfers are some three times slower"
        );
    }
    let transport = Arc::new(transport());
    server.transport_config(transport.clone());
    client.transport_config(transport);
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(
        quinn::EndpointConfig::default(),
        Some(server),
        socket,
        Arc::new(TokioRuntime),
    )?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}
