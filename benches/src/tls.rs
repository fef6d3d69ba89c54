//! One TCP connection of TLS 1.3 by rustls, with the buffers that a bulk transfer wants. It blocks:
//! a thread for each end is the cheapest that there is.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use shoal_p2p::identity::Authority;

const NAME: &str = "localhost";
/// What may be sealed before it is written. rustls alone stops at 64 KiB.
const SEALED_BYTES_MAX: usize = 1 << 20;
/// rustls alone reads 4 KiB at a time.
const READ_BYTES: usize = 256 << 10;
/// What the receiver says when it wants the content.
const BEGIN: u8 = b'!';

/// Listens for one receiver.
#[derive(Debug)]
pub struct Sender {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl Sender {
    /// # Errors
    /// Where the address is taken.
    pub fn bind(authority: &Authority, listen: SocketAddr) -> Result<Self> {
        let issued = authority.issue_http(&[NAME.to_owned()])?;
        let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().context("the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).context("the key")?;
        let config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Self { listener: TcpListener::bind(listen)?, config: Arc::new(config) })
    }

    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Sends `contents` one after the other to the first who connects, when that one wants them.
    pub fn send(self, contents: Vec<Bytes>) -> JoinHandle<Result<()>> {
        thread::spawn(move || {
            let socket = Socket::new(self.listener.accept()?.0)?;
            let mut connection = ServerConnection::new(self.config)?;
            connection.set_buffer_limit(Some(SEALED_BYTES_MAX));
            let mut stream = StreamOwned::new(connection, socket);
            stream.read_exact(&mut [0])?;
            for content in contents {
                stream.write_all(&content)?;
            }
            stream.conn.send_close_notify();
            Ok(stream.flush()?)
        })
    }
}

/// Whoever takes from a [`Sender`].
#[derive(Debug)]
pub struct Receiver {
    stream: StreamOwned<ClientConnection, Socket>,
}

impl Receiver {
    /// Has shaken hands when it returns.
    ///
    /// # Errors
    /// Where nobody is there whom the authority vouches for.
    pub fn connect(authority: &Authority, address: SocketAddr) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes())?)?;
        let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(NAME)?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let socket = Socket::new(TcpStream::connect(address)?)?;
        let mut stream = StreamOwned::new(connection, socket);
        stream.flush()?;
        Ok(Self { stream })
    }

    /// Says that the content may come.
    pub fn begin(&mut self) -> Result<()> {
        self.stream.write_all(&[BEGIN])?;
        Ok(self.stream.flush()?)
    }

    /// # Errors
    /// Where it ends before.
    pub fn read_exact(&mut self, content: &mut [u8]) -> Result<()> {
        Ok(self.stream.read_exact(content)?)
    }
}

/// Reads in big pieces; what is written is in big ones already.
#[derive(Debug)]
struct Socket(BufReader<TcpStream>);

impl Socket {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(READ_BYTES, socket)))
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::ClusterId;

    use super::*;

    #[test]
    fn all_that_is_sent_is_received_in_order() {
        // Fails only where a provider is installed already, which is what is wanted.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(1));
        let authority = Authority::create(&cluster).unwrap();
        let contents: Vec<Bytes> = (0..9_u8).map(|at| vec![at; 300_000].into()).collect();
        let sender = Sender::bind(&authority, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = sender.address().unwrap();
        let sending = sender.send(contents.clone());
        let mut receiver = Receiver::connect(&authority, address).unwrap();
        receiver.begin().unwrap();
        for content in contents {
            let mut received = vec![0; content.len()];
            receiver.read_exact(&mut received).unwrap();
            assert_eq!(received, content);
        }
        assert!(receiver.read_exact(&mut [0]).is_err(), "more came than was sent");
        sending.join().unwrap().unwrap();
        let other = Authority::create(&cluster).unwrap();
        let sender = Sender::bind(&other, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = sender.address().unwrap();
        let sending = sender.send(Vec::new());
        assert!(Receiver::connect(&authority, address).is_err(), "another authority's");
        assert!(sending.join().unwrap().is_err());
    }
}
