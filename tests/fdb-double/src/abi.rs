//! FoundationDB's C API, as far as the crate `foundationdb` names it.
//!
//! Source: `fdb_c.h` of API version 730.
#![allow(unsafe_code, reason = "this is the C side")]
#![allow(unreachable_pub, reason = "C reaches it")]

use crate::codes::{self, Code};
use crate::future::{Answer, Function, Future, Handle, Pair};
use crate::network::NETWORK;
use crate::store::Mutation;
use crate::transaction::{Database, RangeRead, Transaction};
use kiln_kv::{KeyRange, successor};
use std::ffi::{CStr, OsStr, c_char, c_double, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const API_VERSION: c_int = 730;

/// What C holds of a database.
type DatabaseHandle = Arc<Database>;

/// What is at a pointer that C passes.
///
/// # Safety
/// It points to a value of that type that was handed out here and is not destroyed.
unsafe fn at<'a, T>(pointer: *mut T) -> &'a T {
    // SAFETY: as the caller promises.
    unsafe { &*pointer }
}

/// # Safety
/// `pointer` has `length` bytes, or `length` is 0.
unsafe fn bytes(pointer: *const u8, length: c_int) -> Vec<u8> {
    match usize::try_from(length) {
        // SAFETY: as the caller promises.
        Ok(length @ 1..) => unsafe { std::slice::from_raw_parts(pointer, length) }.to_vec(),
        _ => Vec::new(),
    }
}

/// # Safety
/// `pointer` can be written, and is for a `T`.
unsafe fn put<T>(pointer: *mut T, value: T) {
    // SAFETY: as the caller promises.
    unsafe { pointer.write(value) }
}

fn hand_out<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// # Safety
/// `pointer` was handed out here, and is not used any more.
unsafe fn take_back<T>(pointer: *mut T) {
    // SAFETY: as the caller promises.
    drop(unsafe { Box::from_raw(pointer) });
}

/// Exports functions under their C names; each body is run with what C promises.
macro_rules! exports {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {
        $(
            /// See `fdb_c.h`.
            ///
            /// # Safety
            /// As there: pointers are what they are called, and not destroyed.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
                // SAFETY: the caller keeps to `fdb_c.h`.
                #[allow(unused_unsafe, reason = "some bodies are safe")]
                unsafe { $body }
            }
        )*
    };
}

/// Exports functions whose future is an error: nobody here needs them.
macro_rules! unsupported {
    ($($name:ident();)*) => {
        exports! { $($name(_handle: *mut c_void) -> *mut Handle {
            hand_out(Future::ready(Err(codes::UNSUPPORTED_OPERATION)))
        })* }
    };
}

static IS_VERSION_SET: AtomicBool = AtomicBool::new(false);

exports! {
    fdb_get_error(code: Code) -> *const c_char { codes::text(code).as_ptr() }

    fdb_error_predicate(predicate: c_int, code: Code) -> c_int {
        c_int::from(match predicate {
            50000 => codes::is_retryable(code),
            50001 => codes::is_maybe_committed(code),
            50002 => codes::is_retryable_not_committed(code),
            _ => false,
        })
    }

    fdb_get_max_api_version() -> c_int { API_VERSION }

    fdb_select_api_version_impl(runtime: c_int, header: c_int) -> Code {
        if runtime > API_VERSION || header > API_VERSION {
            return codes::API_VERSION_NOT_SUPPORTED;
        }
        match IS_VERSION_SET.swap(true, Ordering::Relaxed) {
            true => codes::API_VERSION_ALREADY_SET,
            false => 0,
        }
    }

    fdb_network_set_option(_option: c_int, _value: *const u8, _length: c_int) -> Code { 0 }
    fdb_setup_network() -> Code { NETWORK.set_up() }
    fdb_run_network() -> Code { NETWORK.run(); 0 }
    fdb_stop_network() -> Code { NETWORK.stop(); 0 }
}

exports! {
    fdb_future_cancel(future: *mut Handle) {
        at(future).complete(Err(codes::OPERATION_CANCELLED));
    }

    fdb_future_destroy(future: *mut Handle) {
        // Whoever waits for it is told, and lets go of what the callback was given.
        at(future).complete(Err(codes::OPERATION_CANCELLED));
        take_back(future);
    }

    fdb_future_release_memory(_future: *mut Handle) {}
    fdb_future_block_until_ready(future: *mut Handle) -> Code { at(future).wait(); 0 }
    fdb_future_is_ready(future: *mut Handle) -> c_int { c_int::from(at(future).is_ready()) }

    fdb_future_set_callback(future: *mut Handle, function: Function, with: *mut c_void) -> Code {
        at(future).call(function, future, with);
        0
    }

    fdb_future_get_error(future: *mut Handle) -> Code {
        at(future).look(|outcome| match outcome {
            Some(Ok(_)) => 0,
            Some(Err(code)) => *code,
            None => codes::CLIENT_INVALID_OPERATION,
        })
    }

    fdb_future_get_int64(future: *mut Handle, out: *mut i64) -> Code {
        look(future, |answer| match answer {
            Answer::Number(number) => { put(out, *number); true }
            _ => false,
        })
    }

    fdb_future_get_value(
        future: *mut Handle, present: *mut c_int, value: *mut *const u8, length: *mut c_int
    ) -> Code {
        look(future, |answer| match answer {
            Answer::Value(found) => {
                put(present, c_int::from(found.is_some()));
                let found = found.as_deref().unwrap_or_default();
                put(value, found.as_ptr());
                put(length, found.len() as c_int);
                true
            }
            _ => false,
        })
    }

    fdb_future_get_keyvalue_array(
        future: *mut Handle, pairs: *mut *const Pair, count: *mut c_int, more: *mut c_int
    ) -> Code {
        look(future, |answer| match answer {
            Answer::Page(page) => {
                put(pairs, page.shown.as_ptr());
                put(count, page.shown.len() as c_int);
                put(more, c_int::from(page.more));
                true
            }
            _ => false,
        })
    }

    fdb_future_get_key(_future: *mut Handle, _key: *mut *const u8, _length: *mut c_int) -> Code {
        codes::UNSUPPORTED_OPERATION
    }
    fdb_future_get_key_array(_future: *mut Handle, _keys: *mut *const c_void, _count: *mut c_int) -> Code {
        codes::UNSUPPORTED_OPERATION
    }
    fdb_future_get_string_array(
        _future: *mut Handle, _strings: *mut *const *const c_char, _count: *mut c_int
    ) -> Code { codes::UNSUPPORTED_OPERATION }
    fdb_future_get_mappedkeyvalue_array(
        _future: *mut Handle, _pairs: *mut *const c_void, _count: *mut c_int, _more: *mut c_int
    ) -> Code { codes::UNSUPPORTED_OPERATION }
}

/// Shows an answer to `look`, which says whether it is of its kind.
///
/// # Safety
/// `future` is one that was handed out here and is not destroyed.
unsafe fn look(future: *mut Handle, look: impl FnOnce(&Answer) -> bool) -> Code {
    // SAFETY: as the caller promises.
    unsafe { at(future) }.look(|outcome| match outcome {
        Some(Ok(answer)) if look(answer) => 0,
        Some(Err(code)) => *code,
        _ => codes::CLIENT_INVALID_OPERATION,
    })
}

exports! {
    fdb_create_database(cluster_file: *const c_char, out: *mut *mut DatabaseHandle) -> Code {
        let path = OsStr::from_bytes(CStr::from_ptr(cluster_file).to_bytes());
        match Database::open(path.as_ref()) {
            Ok(database) => { put(out, hand_out(database)); 0 }
            Err(code) => code,
        }
    }

    fdb_database_destroy(database: *mut DatabaseHandle) { take_back(database) }
    fdb_database_set_option(
        _database: *mut DatabaseHandle, _option: c_int, _value: *const u8, _length: c_int
    ) -> Code { 0 }
    fdb_database_open_tenant(
        _database: *mut DatabaseHandle, _name: *const u8, _length: c_int, _out: *mut *mut c_void
    ) -> Code { codes::UNSUPPORTED_OPERATION }
    fdb_database_get_main_thread_busyness(_database: *mut DatabaseHandle) -> c_double { 0.0 }
    fdb_tenant_destroy(_tenant: *mut c_void) {}
    fdb_tenant_create_transaction(_tenant: *mut c_void, _out: *mut *mut c_void) -> Code {
        codes::UNSUPPORTED_OPERATION
    }

    fdb_database_create_transaction(database: *mut DatabaseHandle, out: *mut *mut Transaction) -> Code {
        put(out, hand_out(Transaction::new(at(database))));
        0
    }

    fdb_transaction_destroy(transaction: *mut Transaction) { take_back(transaction) }
    fdb_transaction_cancel(transaction: *mut Transaction) {
        at(transaction).refuse(codes::TRANSACTION_CANCELLED);
    }
    fdb_transaction_reset(transaction: *mut Transaction) { at(transaction).reset() }

    fdb_transaction_set_option(
        transaction: *mut Transaction, option: c_int, _value: *const u8, _length: c_int
    ) -> Code {
        // FDB_TR_OPTION_READ_YOUR_WRITES_DISABLE
        if option == 51 {
            at(transaction).blind();
        }
        0
    }

    fdb_transaction_set_read_version(transaction: *mut Transaction, version: i64) {
        at(transaction).set_read_version(version as u64);
    }

    fdb_transaction_get_read_version(transaction: *mut Transaction) -> *mut Handle {
        hand_out(at(transaction).read_version())
    }

    fdb_transaction_get(
        transaction: *mut Transaction, key: *const u8, length: c_int, snapshot: c_int
    ) -> *mut Handle {
        hand_out(at(transaction).get(bytes(key, length), snapshot != 0))
    }

    fdb_transaction_get_range(
        transaction: *mut Transaction,
        begin: *const u8, begin_length: c_int, begin_or_equal: c_int, begin_offset: c_int,
        end: *const u8, end_length: c_int, end_or_equal: c_int, end_offset: c_int,
        limit: c_int, target_bytes: c_int, mode: c_int, iteration: c_int,
        snapshot: c_int, reverse: c_int
    ) -> *mut Handle {
        // The first key from there on, or behind it.
        let select = |key: Vec<u8>, or_equal: c_int, offset: c_int| match (or_equal, offset) {
            (0, 1) => Some(key),
            (_, 1) => Some(successor(&key)),
            _ => None,
        };
        let start = select(bytes(begin, begin_length), begin_or_equal, begin_offset);
        let end = select(bytes(end, end_length), end_or_equal, end_offset);
        let (Some(start), Some(end)) = (start, end) else {
            return hand_out(Future::ready(Err(codes::UNSUPPORTED_OPERATION)));
        };
        let target = usize::try_from(target_bytes).unwrap_or(0);
        let read = RangeRead {
            range: KeyRange { start, end },
            limit: usize::try_from(limit).unwrap_or(0),
            bytes: if target > 0 { target } else { page_bytes(mode, iteration) },
            snapshot: snapshot != 0,
            reverse: reverse != 0,
        };
        hand_out(at(transaction).get_range(read))
    }

    fdb_transaction_set(
        transaction: *mut Transaction, key: *const u8, length: c_int, value: *const u8, value_length: c_int
    ) {
        at(transaction).write(Mutation::Set(bytes(key, length), bytes(value, value_length)));
    }

    fdb_transaction_atomic_op(
        transaction: *mut Transaction, key: *const u8, length: c_int,
        operand: *const u8, operand_length: c_int, operation: c_int
    ) {
        let (key, operand) = (bytes(key, length), bytes(operand, operand_length));
        match operation {
            2 => at(transaction).write(Mutation::Add(key, operand)),
            12 => at(transaction).write(Mutation::Max(key, operand)),
            _ => at(transaction).refuse(codes::UNSUPPORTED_OPERATION),
        }
    }

    fdb_transaction_clear(transaction: *mut Transaction, key: *const u8, length: c_int) {
        at(transaction).write(Mutation::Clear(KeyRange::key(&bytes(key, length))));
    }

    fdb_transaction_clear_range(
        transaction: *mut Transaction, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int
    ) {
        let (start, end) = (bytes(begin, begin_length), bytes(end, end_length));
        at(transaction).write(Mutation::Clear(KeyRange { start, end }));
    }

    fdb_transaction_add_conflict_range(
        transaction: *mut Transaction,
        begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int, kind: c_int
    ) -> Code {
        let (start, end) = (bytes(begin, begin_length), bytes(end, end_length));
        at(transaction).add_conflict(KeyRange { start, end }, kind == 1).err().unwrap_or(0)
    }

    fdb_transaction_commit(transaction: *mut Transaction) -> *mut Handle {
        hand_out(at(transaction).commit())
    }

    fdb_transaction_get_committed_version(transaction: *mut Transaction, out: *mut i64) -> Code {
        put(out, at(transaction).committed());
        0
    }

    fdb_transaction_on_error(transaction: *mut Transaction, code: Code) -> *mut Handle {
        hand_out(at(transaction).on_error(code))
    }
}

unsupported! {
    fdb_database_get_client_status();
    fdb_transaction_get_key();
    fdb_transaction_get_addresses_for_key();
    fdb_transaction_get_mapped_range();
    fdb_transaction_watch();
    fdb_transaction_get_approximate_size();
    fdb_transaction_get_versionstamp();
    fdb_transaction_get_estimated_range_size_bytes();
    fdb_transaction_get_range_split_points();
}

/// About how much comes at once: small, so that pages end where nobody expects it.
fn page_bytes(mode: c_int, iteration: c_int) -> usize {
    match mode {
        // FDB_STREAMING_MODE_EXACT
        0 => 0,
        // ITERATOR
        -1 => 256 << iteration.clamp(0, 8),
        // SMALL, MEDIUM, LARGE
        1 => 256,
        2 => 1000,
        3 => 4096,
        // SERIAL, WANT_ALL
        _ => 80_000,
    }
}
