//! Registers for libvirt's events and wraps the calls the safe crate lacks. Decides nothing. The only file with
//! unsafe code: callbacks copy what they are given into a channel and never panic, and every pointer libvirt
//! hands out is copied and freed before a wrapper returns.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void},
    ptr,
    sync::OnceLock,
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;
use virt::{connect::Connect, domain::Domain, error::Error};

use crate::host::{DomainEvent, HostEvent, Lifecycle, StoppedHow};

/// How often the event loop wakes even if nothing happened, in milliseconds: a registration made from another
/// thread is only seen by a loop that wakes.
const TICK_MS: c_int = 1000;

/// What a callback needs: where to send, boxed once per registration and freed by libvirt through `release`.
struct Context {
    sender: UnboundedSender<HostEvent>,
    generation: u64,
}

/// Starts libvirt's default event loop on a thread of its own, once per process. Must come before the first
/// connection is opened.
pub fn start_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED.get_or_init(start_event_loop_once).clone()
}

fn start_event_loop_once() -> Result<(), String> {
    virt::error::clear_error_callback();
    virt::event::event_register_default_impl().map_err(|e| e.to_string())?;
    // SAFETY: the callback is a plain function that ignores its arguments; there is no opaque value to free.
    let timer = unsafe { virt_sys::virEventAddTimeout(TICK_MS, Some(on_tick), ptr::null_mut(), None) };
    if timer < 0 {
        return Err(Error::last_error().to_string());
    }
    let run = || loop {
        if let Err(error) = virt::event::event_run_default_impl() {
            tracing::warn!(%error, "libvirt's event loop failed once; going on");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    std::thread::Builder::new().name("libvirt-events".into()).spawn(run).map_err(|e| e.to_string())?;
    Ok(())
}

/// Registers for every event the daemon listens to and for the end of the connection. The registrations live as
/// long as the connection.
pub fn register(conn: &Connect, sender: &UnboundedSender<HostEvent>, generation: u64) -> Result<(), Error> {
    let context = || Box::into_raw(Box::new(Context { sender: sender.clone(), generation })).cast::<c_void>();
    // SAFETY: `conn` is a live connection; `on_close` has the type libvirt calls it with; the box behind the
    // opaque pointer is owned by libvirt from here on, and freed by `release` or, on failure, right below.
    unsafe {
        let opaque = context();
        if virt_sys::virConnectRegisterCloseCallback(conn.as_ptr(), Some(on_close), opaque, Some(release)) < 0
        {
            release(opaque);
            return Err(Error::last_error());
        }
    }
    for (id, callback) in callbacks() {
        // SAFETY: as above; the callback's real type is the one libvirt documents for this event id, and libvirt
        // casts it back to that type before calling it.
        unsafe {
            let opaque = context();
            let registered = virt_sys::virConnectDomainEventRegisterAny(
                conn.as_ptr(),
                ptr::null_mut(),
                id as c_int,
                Some(callback),
                opaque,
                Some(release),
            );
            if registered < 0 {
                release(opaque);
                return Err(Error::last_error());
            }
        }
    }
    register_shutdown_reasons(conn, context());
    Ok(())
}

/// QEMU's own SHUTDOWN event is the only one that tells a guest's power-off from a reset that ends the domain. Where
/// it cannot be had (the test driver), the difference stays unknown.
fn register_shutdown_reasons(conn: &Connect, opaque: *mut c_void) {
    // SAFETY: `conn` is a live connection, the name ends with a zero, the callback has the type libvirt calls it with;
    // the opaque box is owned by libvirt from here on and freed by `release`, or right below on failure.
    unsafe {
        let registered = virt_sys::virConnectDomainQemuMonitorEventRegister(
            conn.as_ptr(),
            ptr::null_mut(),
            c"SHUTDOWN".as_ptr(),
            Some(on_qemu_shutdown),
            opaque,
            Some(release),
            0,
        );
        if registered < 0 {
            release(opaque);
            tracing::debug!(error = %Error::last_error(), "QEMU's shutdown reasons are not available here");
        }
    }
}

type Generic = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);
type Conn = virt_sys::virConnectPtr;
type Dom = virt_sys::virDomainPtr;

/// Event ids with their callbacks, cast to the generic type libvirt registers.
fn callbacks() -> [(virt_sys::virDomainEventID, Generic); 8] {
    // SAFETY: function pointers all have one size; libvirt calls each with the arguments of its event id, which are
    // the ones its real type declares.
    unsafe {
        [
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                std::mem::transmute::<
                    unsafe extern "C" fn(Conn, Dom, c_int, c_int, *mut c_void) -> c_int,
                    Generic,
                >(on_lifecycle),
            ),
            (virt_sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot as Generic),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_RTC_CHANGE,
                std::mem::transmute::<unsafe extern "C" fn(Conn, Dom, c_longlong, *mut c_void), Generic>(
                    on_rtc_change,
                ),
            ),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
                std::mem::transmute::<
                    unsafe extern "C" fn(
                        Conn,
                        Dom,
                        *const c_char,
                        *const c_char,
                        c_int,
                        *const c_char,
                        *mut c_void,
                    ),
                    Generic,
                >(on_io_error),
            ),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                std::mem::transmute::<unsafe extern "C" fn(Conn, Dom, *const c_char, *mut c_void), Generic>(
                    on_device_removed,
                ),
            ),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                std::mem::transmute::<unsafe extern "C" fn(Conn, Dom, c_int, c_int, *mut c_void), Generic>(
                    on_agent,
                ),
            ),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD,
                std::mem::transmute::<
                    unsafe extern "C" fn(
                        Conn,
                        Dom,
                        *const c_char,
                        *const c_char,
                        c_ulonglong,
                        c_ulonglong,
                        *mut c_void,
                    ),
                    Generic,
                >(on_block_threshold),
            ),
            (
                virt_sys::VIR_DOMAIN_EVENT_ID_WATCHDOG,
                std::mem::transmute::<unsafe extern "C" fn(Conn, Dom, c_int, *mut c_void), Generic>(
                    on_watchdog,
                ),
            ),
        ]
    }
}

unsafe extern "C" fn on_tick(_: c_int, _: *mut c_void) {}

/// Frees the context of one registration.
///
/// # Safety
/// `opaque` comes from `Box::into_raw` of a `Context` and is used by nobody else any more.
unsafe extern "C" fn release(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once, when the registration is over.
    drop(unsafe { Box::from_raw(opaque.cast::<Context>()) });
}

/// Sends one event of a domain; an event whose domain cannot be named is dropped, as events are only hints.
///
/// # Safety
/// `domain` is the live handle libvirt passed to the callback, `opaque` the context it was registered with.
unsafe fn send(domain: Dom, opaque: *mut c_void, event: DomainEvent) {
    let mut text = [0 as c_char; virt_sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the buffer has the length libvirt asks for, and the domain is live during the callback.
    if unsafe { virt_sys::virDomainGetUUIDString(domain, text.as_mut_ptr()) } < 0 {
        return;
    }
    // SAFETY: libvirt ended the string with a zero inside the buffer; the context outlives the callback.
    let (uuid, context) = unsafe { (string(text.as_ptr()), &*opaque.cast::<Context>()) };
    // A closed channel means the daemon is going away.
    let _ = context.sender.send(HostEvent::Domain { uuid, event });
}

/// Copies a string of libvirt's; a null pointer is an empty string.
///
/// # Safety
/// `text` is null or ends with a zero.
unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and libvirt's strings end with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn on_close(_: Conn, reason: c_int, opaque: *mut c_void) {
    let reason = match reason as virt_sys::virConnectCloseReason {
        virt_sys::VIR_CONNECT_CLOSE_REASON_EOF => "libvirt closed the connection",
        virt_sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => "libvirt did not answer keepalive messages",
        virt_sys::VIR_CONNECT_CLOSE_REASON_CLIENT => "closed by the daemon",
        _ => "the connection failed",
    };
    // SAFETY: the context outlives the callback.
    let context = unsafe { &*opaque.cast::<Context>() };
    let _ = context.sender.send(HostEvent::ConnectionClosed { generation: context.generation, reason });
}

unsafe extern "C" fn on_lifecycle(
    _: Conn,
    domain: Dom,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let lifecycle = match event as virt_sys::virDomainEventType {
        virt_sys::VIR_DOMAIN_EVENT_DEFINED | virt_sys::VIR_DOMAIN_EVENT_UNDEFINED => Lifecycle::Defined,
        virt_sys::VIR_DOMAIN_EVENT_STARTED => Lifecycle::Started,
        virt_sys::VIR_DOMAIN_EVENT_SUSPENDED => Lifecycle::Suspended,
        virt_sys::VIR_DOMAIN_EVENT_RESUMED => Lifecycle::Resumed,
        virt_sys::VIR_DOMAIN_EVENT_SHUTDOWN => Lifecycle::ShuttingDown {
            by_guest: detail as virt_sys::virDomainEventShutdownDetailType
                == virt_sys::VIR_DOMAIN_EVENT_SHUTDOWN_GUEST,
        },
        virt_sys::VIR_DOMAIN_EVENT_CRASHED => Lifecycle::Panicked,
        virt_sys::VIR_DOMAIN_EVENT_STOPPED => {
            Lifecycle::Stopped(match detail as virt_sys::virDomainEventStoppedDetailType {
                virt_sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => StoppedHow::Shutdown,
                virt_sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => StoppedHow::Destroyed,
                virt_sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => StoppedHow::Migrated,
                virt_sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => StoppedHow::Failed,
                _ => StoppedHow::Crashed,
            })
        }
        _ => Lifecycle::Other,
    };
    // SAFETY: domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::Lifecycle(lifecycle)) };
    0
}

unsafe extern "C" fn on_qemu_shutdown(
    _: Conn,
    domain: Dom,
    _: *const c_char,
    _: c_longlong,
    _: c_uint,
    details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: the string is libvirt's and lives during the callback; domain and opaque are the callback's own.
    unsafe {
        let details: serde_json::Value = serde_json::from_str(&string(details)).unwrap_or_default();
        if let Some(reason) = details.get("reason").and_then(serde_json::Value::as_str) {
            send(domain, opaque, DomainEvent::ShutdownReason { reason: reason.into() });
        }
    }
}

unsafe extern "C" fn on_reboot(_: Conn, domain: Dom, opaque: *mut c_void) {
    // SAFETY: domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::Reboot) };
}

unsafe extern "C" fn on_rtc_change(_: Conn, domain: Dom, offset: c_longlong, opaque: *mut c_void) {
    // SAFETY: domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::RtcChange { offset_seconds: offset }) };
}

unsafe extern "C" fn on_io_error(
    _: Conn,
    domain: Dom,
    path: *const c_char,
    alias: *const c_char,
    action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: all strings are libvirt's and live during the callback; domain and opaque are the callback's own.
    unsafe {
        let event = DomainEvent::IoError {
            path: string(path),
            device: string(alias),
            reason: string(reason),
            paused: action as virt_sys::virDomainEventIOErrorAction
                == virt_sys::VIR_DOMAIN_EVENT_IO_ERROR_PAUSE,
        };
        send(domain, opaque, event);
    }
}

unsafe extern "C" fn on_device_removed(_: Conn, domain: Dom, alias: *const c_char, opaque: *mut c_void) {
    // SAFETY: the string is libvirt's and lives during the callback; domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::DeviceRemoved { device: string(alias) }) };
}

unsafe extern "C" fn on_agent(_: Conn, domain: Dom, state: c_int, _: c_int, opaque: *mut c_void) {
    let connected = state as virt_sys::virConnectDomainEventAgentLifecycleState
        == virt_sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED;
    // SAFETY: domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::Agent { connected }) };
}

unsafe extern "C" fn on_watchdog(_: Conn, domain: Dom, _: c_int, opaque: *mut c_void) {
    // SAFETY: domain and opaque are the callback's own.
    unsafe { send(domain, opaque, DomainEvent::Watchdog) };
}

unsafe extern "C" fn on_block_threshold(
    _: Conn,
    domain: Dom,
    device: *const c_char,
    _: *const c_char,
    threshold: c_ulonglong,
    excess: c_ulonglong,
    opaque: *mut c_void,
) {
    // SAFETY: the string is libvirt's and lives during the callback; domain and opaque are the callback's own.
    unsafe {
        let event = DomainEvent::BlockThreshold { device: string(device), threshold, excess };
        send(domain, opaque, event);
    }
}

unsafe extern "C" {
    /// libc's `free`: libvirt allocates the arrays it returns with malloc.
    fn free(pointer: *mut c_void);
}

/// Who tells a guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressSource {
    /// The guest's agent.
    Agent,
    /// The DHCP leases of the libvirt networks it is plugged into.
    Leases,
}

/// Addresses of a guest's interfaces by hardware address.
pub fn addresses(domain: &Domain, source: AddressSource) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let source = match source {
        AddressSource::Agent => virt_sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
        AddressSource::Leases => virt_sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    };
    let mut list: *mut virt_sys::virDomainInterfacePtr = ptr::null_mut();
    // SAFETY: the domain is live; libvirt fills in the array.
    let count = unsafe { virt_sys::virDomainInterfaceAddresses(domain.as_ptr(), &mut list, source, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for index in 0..count {
        // SAFETY: libvirt returned `count` interfaces with `naddrs` addresses each; each is copied and then freed once.
        unsafe {
            let interface = *list.add(index);
            let addresses = found.entry(string((*interface).hwaddr).to_lowercase()).or_default();
            for address in 0..(*interface).naddrs as usize {
                addresses.push(string((*(*interface).addrs.add(address)).addr));
            }
            virt_sys::virDomainInterfaceFree(interface);
        }
    }
    // SAFETY: the array was allocated by libvirt with malloc (or is null) and is freed once.
    unsafe { free(list.cast()) };
    Ok(found)
}

/// What the agent tells of operating system, host name and time zone, by libvirt's parameter names.
pub fn guest_info(domain: &Domain) -> Result<BTreeMap<String, String>, Error> {
    let types = virt_sys::VIR_DOMAIN_GUEST_INFO_OS
        | virt_sys::VIR_DOMAIN_GUEST_INFO_HOSTNAME
        | virt_sys::VIR_DOMAIN_GUEST_INFO_TIMEZONE;
    let mut params: virt_sys::virTypedParameterPtr = ptr::null_mut();
    let mut count: c_int = 0;
    // SAFETY: the domain is live; libvirt fills in the array and its length.
    if unsafe { virt_sys::virDomainGetGuestInfo(domain.as_ptr(), types, &mut params, &mut count, 0) } < 0 {
        return Err(Error::last_error());
    }
    let mut found = BTreeMap::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: libvirt returned `count` parameters; the union's string is read only where the type says string.
        unsafe {
            let param = &*params.add(index);
            if param.type_ as virt_sys::virTypedParameterType == virt_sys::VIR_TYPED_PARAM_STRING {
                found.insert(string(param.field.as_ptr()), string(param.value.s));
            }
        }
    }
    // SAFETY: the array is libvirt's and is freed once, with the strings it owns.
    unsafe { virt_sys::virTypedParamsFree(params, count) };
    Ok(found)
}

/// Number of disks QEMU has stopped because of an error.
pub fn failed_disks(domain: &Domain) -> Result<usize, Error> {
    const MOST: usize = 64;
    let mut errors = [virt_sys::virDomainDiskError { disk: ptr::null_mut(), error: 0 }; MOST];
    // SAFETY: the domain is live and the array has the length that is named.
    let count =
        unsafe { virt_sys::virDomainGetDiskErrors(domain.as_ptr(), errors.as_mut_ptr(), MOST as c_uint, 0) };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    for error in errors.iter().take(count) {
        // SAFETY: libvirt allocated the name with malloc for the entries it counted; each is freed once.
        unsafe { free(error.disk.cast()) };
    }
    Ok(count)
}

/// Limits how long a call waits for the guest's agent.
pub fn set_agent_timeout(domain: &Domain, seconds: i32) -> Result<(), Error> {
    // SAFETY: the domain is live.
    match unsafe { virt_sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) } {
        -1 => Err(Error::last_error()),
        _ => Ok(()),
    }
}

/// Injects a non-maskable interrupt.
pub fn inject_nmi(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is live.
    match unsafe { virt_sys::virDomainInjectNMI(domain.as_ptr(), 0) } {
        -1 => Err(Error::last_error()),
        _ => Ok(()),
    }
}

/// Closes a connection whose handle's own drop would panic if libvirt had already given it up.
pub fn close(conn: Connect) {
    // SAFETY: the handle owns one reference; it is given up here and the handle is forgotten, so it is closed once.
    unsafe { virt_sys::virConnectClose(conn.as_ptr()) };
    std::mem::forget(conn);
}
