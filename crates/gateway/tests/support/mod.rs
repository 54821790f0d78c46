//! A gateway, its servers and its clients in one process, on a network in memory and in virtual
//! time.
#![allow(dead_code)]

use base::env::{Env, Listener, MemoryNet, Net, Pending, Stream};
use bytes::Bytes;
use futures::future::BoxFuture;
use gateway::balance::health::Reason;
use gateway::config::Config;
use gateway::front::serve;
use gateway::gateway::Gateway;
use gateway::http::pool::Spawn;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::server::conn::{http1 as server, http2 as http2_server};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One server of one service.
pub const ONE: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["a=10.0.0.1:1"]
"#;

/// Two servers of one service.
pub const TWO: &str = r#"
    zone = "a"
    listen = "127.0.0.1:1"
    [services.web]
    servers = ["a=10.0.0.1:1", "a=10.0.0.1:2"]
    timeout = "2s"
    attempt_timeout = "500ms"
"#;

pub struct World {
    pub env: Env,
    pub gateway: Arc<Gateway>,
}

pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// A network on which a connection takes a while to open.
#[derive(Default)]
pub struct FarNet(MemoryNet);

impl Net for FarNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.0.connect(to).await
        })
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        self.0.listen(at)
    }
}

/// What a server does with a request.
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync>;

pub fn handler<F>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |request| Box::pin(answer(request)))
}

pub fn says(text: impl Into<String>) -> Answer {
    Response::new(Full::new(Bytes::from(text.into())).boxed())
}

pub fn status(code: u16) -> Answer {
    let mut answer = says("");
    *answer.status_mut() = StatusCode::from_u16(code).unwrap();
    answer
}

/// A server that says the line and the fields that it was asked with.
pub fn echo() -> Handler {
    handler(|request| async move {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        says(text)
    })
}

/// How often something happened, such as a request at a server.
#[derive(Clone, Default)]
pub struct Asked(Arc<AtomicUsize>);

impl Asked {
    pub fn n(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl World {
    pub fn new(config: &str) -> World {
        World::on(Arc::new(MemoryNet::default()), config)
    }

    pub fn on(net: Arc<dyn Net>, config: &str) -> World {
        let env = Env::seeded(7, net);
        let config = parse(config);
        let gateway = Gateway::new(&env, config, 1).unwrap();
        World { env, gateway }
    }

    pub fn reload(&self, config: &str) {
        self.gateway.reload(parse(config)).unwrap();
    }

    /// Why the server at `10.0.0.1:PORT` is out, if it is.
    pub fn out(&self, port: u16) -> Option<Reason> {
        let service = self.gateway.state().backends["web"].handle.clone();
        let service = service.lock();
        service.fleet.servers().find(|server| server.spec.address.port() == port)?.health.out()
    }

    /// A server at `10.0.0.1:PORT`; the task's end is the server's.
    pub async fn server(&self, port: u16, handler: Handler) -> (Asked, tokio::task::AbortHandle) {
        let address = SocketAddr::from(([10, 0, 0, 1], port));
        let mut listener = self.env.net().listen(address).await.unwrap();
        let asked = Asked::default();
        let count = asked.clone();
        let task = self.env.spawn("server", async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, count) = (handler.clone(), count.clone());
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        count.0.fetch_add(1, Ordering::SeqCst);
                        let answer = handler(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let connection =
                        server::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // A client that breaks off is no fault of this server.
                    connection.with_upgrades().await.ok();
                });
            }
        });
        (asked, task.abort_handle())
    }

    /// A server at `10.0.0.1:PORT` that speaks HTTP/2 alone; its connections are counted.
    pub async fn server2(&self, port: u16, handler: Handler) -> Asked {
        let address = SocketAddr::from(([10, 0, 0, 1], port));
        let mut listener = self.env.net().listen(address).await.unwrap();
        let env = self.env.clone();
        let connected = Asked::default();
        let count = connected.clone();
        self.env.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.0.fetch_add(1, Ordering::SeqCst);
                let handler = handler.clone();
                let service = service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let connection = http2_server::Builder::new(Spawn(env.clone()))
                    .serve_connection(TokioIo::new(stream), service);
                env.spawn("server", async move {
                    connection.await.ok();
                });
            }
        });
        connected
    }

    /// A client that speaks HTTP/2 from its first byte.
    pub async fn client2(&self) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect());
        let (sender, connection) = http2::handshake(Spawn(self.env.clone()), io).await.unwrap();
        self.env.spawn("client", async move {
            connection.await.ok();
        });
        sender
    }

    /// A connection to the gateway.
    pub fn connect(&self) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(256 << 10);
        let stream: Stream = Box::new(far);
        let from = SocketAddr::from(([192, 0, 2, 1], 4000));
        let serving = serve::connection(self.gateway.clone(), 0, stream.into(), from, None);
        self.env.spawn("connection", serving);
        near
    }

    pub async fn client(&self) -> Client {
        let io = TokioIo::new(self.connect());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        self.env.spawn("client", async move {
            connection.with_upgrades().await.ok();
        });
        Client { sender }
    }

    /// What comes back for these bytes until the gateway closes the connection or is silent for
    /// two minutes.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        self.env.timeout(std::time::Duration::from_secs(120), read).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn get(&mut self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).header("host", "test.example");
        self.send(request.body(Full::default()).unwrap()).await
    }

    pub async fn post(&mut self, path: &str, body: &str) -> (StatusCode, String) {
        let request = Request::post(path).header("host", "test.example");
        self.send(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> (StatusCode, String) {
        let answer = self.answer(request).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn answer(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }
}

fn parse(config: &str) -> Config {
    Config::parse(Path::new("test.toml"), config).unwrap_or_else(|error| panic!("{error}"))
}
