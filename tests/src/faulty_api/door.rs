//! An address for the controller: HTTP/2 over TLS for its session, HTTP/1.1 for its Lease and Events, as it asks for.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use kube::{Config, client::Body};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
    server::TlsStream,
};
use tower::BoxError;

use super::{FaultyApi, Side};

/// Open until it is dropped.
pub struct Door {
    address: SocketAddr,
    certificate: Vec<u8>,
    task: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Door {
    /// Listens on loopback.
    pub async fn open(api: Arc<FaultyApi>) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (older, sockets) = mpsc::unbounded_channel();
        let for_older = Arc::clone(&api);
        let service = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let api = Arc::clone(&for_older);
            async move { plain(&api, request).await }
        });
        tokio::spawn(async move { axum::serve(Sockets { sockets, address }, service).await });
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (api, acceptor, older) = (Arc::clone(&api), acceptor.clone(), older.clone());
                tokio::spawn(async move {
                    if api.is_absent(Side::Controller) {
                        return;
                    }
                    // A connection that fails is the other side's to notice.
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                        let _ = serve(api, socket).await;
                    } else {
                        let _ = older.send(socket);
                    }
                });
            }
        });
        Ok(Self { address, certificate: certificate.to_vec(), task })
    }

    /// The same configuration, through this door.
    pub fn through(&self, mut config: Config) -> Result<Config> {
        config.cluster_url = format!("https://{}/", self.address).parse()?;
        config.root_cert = Some(vec![self.certificate.clone()]);
        config.auth_info.client_certificate_data = None;
        config.auth_info.client_key_data = None;
        Ok(config)
    }
}

type Socket = TlsStream<TcpStream>;

/// Connections that speak HTTP/1.1, as a server takes them.
struct Sockets {
    sockets: mpsc::UnboundedReceiver<Socket>,
    address: SocketAddr,
}

impl axum::serve::Listener for Sockets {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        match self.sockets.recv().await {
            Some(socket) => (socket, self.address),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A reset is a body that breaks off: closer an answer of this kind cannot come to one.
async fn plain(api: &FaultyApi, request: axum::extract::Request) -> Response<axum::body::Body> {
    let (head, body) = request.into_parts();
    let broken = |error: BoxError| {
        Response::new(axum::body::Body::from_stream(futures::stream::iter([Err::<Bytes, _>(error)])))
    };
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return broken(error.into()),
    };
    let request = Request::from_parts(head, Body::from(bytes.to_vec()));
    match api.answer(Side::Controller, request).await {
        Ok(answer) => answer.map(axum::body::Body::new),
        Err(error) => broken(error),
    }
}

async fn serve<S>(api: Arc<FaultyApi>, socket: S) -> Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(socket).await?;
    let mut answers = tokio::task::JoinSet::new();
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        let (request, respond) = tokio::select! {
            accepted = connection.accept() => accepted.context("closed by the client")??,
            Some(_) = answers.join_next() => continue,
            _ = looks.tick() => {
                if api.is_absent(Side::Controller) {
                    return Err(anyhow!("absent"));
                }
                continue;
            }
        };
        if api.faults.disconnects() {
            return Err(anyhow!("cut"));
        }
        answers.spawn(answer(Arc::clone(&api), request, respond));
    }
}

async fn answer(
    api: Arc<FaultyApi>,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let work = async {
        let (mut head, mut body) = request.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            bytes.extend_from_slice(&data);
        }
        let path = head.uri.path_and_query().map(|path| path.as_str()).unwrap_or("/");
        head.uri = path.parse()?;
        head.version = http::Version::HTTP_11;
        let request = Request::from_parts(head, Body::from(bytes.to_vec()));
        api.answer(Side::Controller, request).await
    };
    let answer: Result<_, BoxError> = tokio::select! {
        answer = work => answer,
        // Whoever asked has given up.
        _ = std::future::poll_fn(|context| respond.poll_reset(context)) => return,
    };
    let Ok(answer) = answer else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return;
    };
    let (mut head, mut body) = answer.into_parts();
    head.version = http::Version::HTTP_2;
    // Of one connection, not of the next.
    for name in ["connection", "transfer-encoding", "keep-alive"] {
        head.headers.remove(name);
    }
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), false) else { return };
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => return,
        };
        let sent = match frame {
            None => {
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => stream.send_data(data, false),
                Err(_) => continue,
            },
            Some(Err(_)) => {
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
