//! How the services serve HTTP/1.1 on an open network: a bounded number of connections, bounded patience with each, and an end
//! in good order. What is answered, and bounds on bodies and requests, are each service's own.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// How long a client may take for its TLS handshake, and for the head of a request.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long open connections may finish their requests when the service is told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `stop` is done, then lets open requests finish for ten seconds. At most so many `connections` are open at once;
/// more wait in the kernel's queue. With `tls`, HTTPS.
///
/// Requests carry the client's address: `Extension<SocketAddr>`. In a tokio runtime with time and network.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    connections: usize,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections.max(1)));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream, from) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => match accepted {
                (place, Ok((stream, from))) => (place, stream, from),
                // Out of file descriptors, say: others will be closed.
                (_, Err(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let router = router.clone().layer(Extension::<SocketAddr>(from));
        let (watcher, tls) = (graceful.watcher(), tls.clone());
        tokio::spawn(async move {
            let _place = place;
            let Some(tls) = tls else { return converse(stream, router, watcher).await };
            // Whoever does not want to talk TLS, or takes too long for it, is left alone.
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                converse(stream, router, watcher).await;
            }
        });
    }
    drop(listener);
    // Whoever is not done by then is cut off.
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: Watcher,
) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that goes away in the middle is its own affair.
    let _ = watcher.watch(connection).await;
}

/// Done when the process is asked to stop (SIGTERM or interrupt), from now on: call it before saying that the service is ready,
/// since who hears that may ask it to stop at once. In a tokio runtime.
pub fn stopped() -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{Signal, SignalKind, signal};
    // A signal that cannot be caught ends the process at once, as it would any other.
    let [mut terminate, mut interrupt] =
        [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| signal(kind).ok());
    async fn came(signal: Option<&mut Signal>) {
        match signal {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
    async move {
        tokio::select! { () = came(terminate.as_mut()) => {}, () = came(interrupt.as_mut()) => {} }
    }
}
