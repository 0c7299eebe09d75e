//! A cable that takes time: two tap devices, one in the host and one at the switch, and tasks that
//! carry each frame from one to the other a fixed time after it came.
//!
//! Frames are never reordered and never lost here; the token buckets before it do that.

use super::namespace::Namespace;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tun_rs::{AsyncDevice, DeviceBuilder, Layer, SyncDevice};

/// Longest frame: 1,500 octets of IP with the header of Ethernet, and room for a tag.
const MAX_FRAME_BYTES: usize = 1600;

/// Frames under way in one direction: at 20 ms, 600 MB/s, far above what a lab's line carries.
const MAX_UNDER_WAY: usize = 8192;

/// A laid cable; both devices go when it does.
#[derive(Debug)]
pub struct DelayLine {
    runtime: Option<Runtime>,
}

impl DelayLine {
    /// Lays one from `eth0` of a host to a new interface of this name at the switch.
    ///
    /// # Panics
    /// When the devices can't be made.
    #[must_use]
    pub fn lay(switch: &Namespace, port: &str, host: &Namespace, one_way: Duration) -> Self {
        let ends = (host.enter(|| tap("eth0")), switch.enter(|| tap(port)));
        // A thread of its own, so that what the test does meanwhile delays nothing more.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread");
        let guard = runtime.enter();
        let open = |device| Arc::new(AsyncDevice::new(device).expect("a device can be polled"));
        let (here, there) = (open(ends.0), open(ends.1));
        for (from, to) in [(here.clone(), there.clone()), (there, here)] {
            let (sender, receiver) = mpsc::channel(MAX_UNDER_WAY);
            runtime.spawn(collect(from, sender, one_way));
            runtime.spawn(deliver(receiver, to));
        }
        drop(guard);
        Self { runtime: Some(runtime) }
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn tap(name: &str) -> SyncDevice {
    let device = DeviceBuilder::new().name(name).layer(Layer::L2).build_sync();
    device.unwrap_or_else(|error| panic!("no tap device {name}: {error}"))
}

/// Reads frames and notes when each is due.
async fn collect(
    device: Arc<AsyncDevice>,
    queue: mpsc::Sender<(Instant, Vec<u8>)>,
    one_way: Duration,
) {
    let mut frame = vec![0; MAX_FRAME_BYTES];
    // Reading fails while the interface is down, at the beginning.
    loop {
        match device.recv(&mut frame).await {
            Ok(length) => {
                let parcel = (Instant::now() + one_way, frame[..length].to_vec());
                if queue.send(parcel).await.is_err() {
                    return;
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Writes frames when they are due.
async fn deliver(mut queue: mpsc::Receiver<(Instant, Vec<u8>)>, device: Arc<AsyncDevice>) {
    while let Some((due, frame)) = queue.recv().await {
        sleep_until(due).await;
        // An interface that is down loses what is sent through it.
        let _ = device.send(&frame).await;
    }
}
