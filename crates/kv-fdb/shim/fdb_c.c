/*
 * Stands in for libfdb_c.so when a binary is linked, and passes each call on to the real one, which is opened
 * when the first store is: so one binary starts with and without it.
 *
 * Prototypes: FoundationDB's C API, version 730.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

typedef int error;
typedef int boolean;
typedef const uint8_t *bytes;
typedef struct opaque *handle; /* a future, database, tenant or transaction */

#define RANGE bytes begin, int begin_length, boolean begin_or_equal, int begin_offset, bytes end, \
              int end_length, boolean end_or_equal, int end_offset
#define RANGE_ARGS begin, begin_length, begin_or_equal, begin_offset, end, end_length, end_or_equal, end_offset

/* result, name, parameters, arguments; those without a result apart. */
#define FUNCTIONS(F, V) \
    F(const char *, fdb_get_error, (error code), (code)) \
    F(boolean, fdb_error_predicate, (int predicate, error code), (predicate, code)) \
    F(error, fdb_select_api_version_impl, (int runtime, int header), (runtime, header)) \
    F(int, fdb_get_max_api_version, (void), ()) \
    F(error, fdb_network_set_option, (int option, bytes value, int length), (option, value, length)) \
    F(error, fdb_setup_network, (void), ()) \
    F(error, fdb_run_network, (void), ()) \
    F(error, fdb_stop_network, (void), ()) \
    V(fdb_future_cancel, (handle f), (f)) \
    V(fdb_future_release_memory, (handle f), (f)) \
    V(fdb_future_destroy, (handle f), (f)) \
    F(error, fdb_future_block_until_ready, (handle f), (f)) \
    F(boolean, fdb_future_is_ready, (handle f), (f)) \
    F(error, fdb_future_set_callback, (handle f, void (*callback)(handle, void *), void *with), \
      (f, callback, with)) \
    F(error, fdb_future_get_error, (handle f), (f)) \
    F(error, fdb_future_get_int64, (handle f, int64_t *out), (f, out)) \
    F(error, fdb_future_get_key, (handle f, bytes *key, int *length), (f, key, length)) \
    F(error, fdb_future_get_value, (handle f, boolean *present, bytes *value, int *length), \
      (f, present, value, length)) \
    F(error, fdb_future_get_keyvalue_array, (handle f, const void **pairs, int *count, boolean *more), \
      (f, pairs, count, more)) \
    F(error, fdb_future_get_mappedkeyvalue_array, (handle f, const void **pairs, int *count, boolean *more), \
      (f, pairs, count, more)) \
    F(error, fdb_future_get_key_array, (handle f, const void **keys, int *count), (f, keys, count)) \
    F(error, fdb_future_get_string_array, (handle f, const char ***strings, int *count), (f, strings, count)) \
    F(error, fdb_create_database, (const char *cluster_file, handle *out), (cluster_file, out)) \
    V(fdb_database_destroy, (handle d), (d)) \
    F(error, fdb_database_set_option, (handle d, int option, bytes value, int length), \
      (d, option, value, length)) \
    F(error, fdb_database_open_tenant, (handle d, bytes name, int length, handle *out), (d, name, length, out)) \
    F(error, fdb_database_create_transaction, (handle d, handle *out), (d, out)) \
    F(double, fdb_database_get_main_thread_busyness, (handle d), (d)) \
    F(handle, fdb_database_get_client_status, (handle d), (d)) \
    V(fdb_tenant_destroy, (handle tenant), (tenant)) \
    F(error, fdb_tenant_create_transaction, (handle tenant, handle *out), (tenant, out)) \
    V(fdb_transaction_destroy, (handle t), (t)) \
    V(fdb_transaction_cancel, (handle t), (t)) \
    V(fdb_transaction_reset, (handle t), (t)) \
    F(error, fdb_transaction_set_option, (handle t, int option, bytes value, int length), \
      (t, option, value, length)) \
    V(fdb_transaction_set_read_version, (handle t, int64_t version), (t, version)) \
    F(handle, fdb_transaction_get_read_version, (handle t), (t)) \
    F(handle, fdb_transaction_get, (handle t, bytes key, int length, boolean snapshot), \
      (t, key, length, snapshot)) \
    F(handle, fdb_transaction_get_key, \
      (handle t, bytes key, int length, boolean or_equal, int offset, boolean snapshot), \
      (t, key, length, or_equal, offset, snapshot)) \
    F(handle, fdb_transaction_get_addresses_for_key, (handle t, bytes key, int length), (t, key, length)) \
    F(handle, fdb_transaction_get_range, \
      (handle t, RANGE, int limit, int target, int mode, int iteration, boolean snapshot, boolean reverse), \
      (t, RANGE_ARGS, limit, target, mode, iteration, snapshot, reverse)) \
    F(handle, fdb_transaction_get_mapped_range, \
      (handle t, RANGE, bytes mapper, int mapper_length, int limit, int target, int mode, int iteration, \
       boolean snapshot, boolean reverse), \
      (t, RANGE_ARGS, mapper, mapper_length, limit, target, mode, iteration, snapshot, reverse)) \
    V(fdb_transaction_set, (handle t, bytes key, int length, bytes value, int value_length), \
      (t, key, length, value, value_length)) \
    V(fdb_transaction_atomic_op, (handle t, bytes key, int length, bytes with, int with_length, int operation), \
      (t, key, length, with, with_length, operation)) \
    V(fdb_transaction_clear, (handle t, bytes key, int length), (t, key, length)) \
    V(fdb_transaction_clear_range, (handle t, bytes begin, int begin_length, bytes end, int end_length), \
      (t, begin, begin_length, end, end_length)) \
    F(handle, fdb_transaction_watch, (handle t, bytes key, int length), (t, key, length)) \
    F(handle, fdb_transaction_commit, (handle t), (t)) \
    F(error, fdb_transaction_get_committed_version, (handle t, int64_t *out), (t, out)) \
    F(handle, fdb_transaction_get_approximate_size, (handle t), (t)) \
    F(handle, fdb_transaction_get_versionstamp, (handle t), (t)) \
    F(handle, fdb_transaction_on_error, (handle t, error code), (t, code)) \
    F(error, fdb_transaction_add_conflict_range, \
      (handle t, bytes begin, int begin_length, bytes end, int end_length, int kind), \
      (t, begin, begin_length, end, end_length, kind)) \
    F(handle, fdb_transaction_get_estimated_range_size_bytes, \
      (handle t, bytes begin, int begin_length, bytes end, int end_length), \
      (t, begin, begin_length, end, end_length)) \
    F(handle, fdb_transaction_get_range_split_points, \
      (handle t, bytes begin, int begin_length, bytes end, int end_length, int64_t size), \
      (t, begin, begin_length, end, end_length, size))

#define DECLARE(result, name, parameters, arguments) \
    static result (*real_##name) parameters; \
    result name parameters { return real_##name arguments; }
#define DECLARE_VOID(name, parameters, arguments) \
    static void(*real_##name) parameters; \
    void name parameters { real_##name arguments; }
FUNCTIONS(DECLARE, DECLARE_VOID)

#define FIND(result, name, parameters, arguments) FIND_VOID(name, parameters, arguments)
#define FIND_VOID(name, parameters, arguments) \
    *(void **)&real_##name = dlsym(library, #name); \
    if (real_##name == NULL) return "it has no function " #name;

/*
 * Opens the client library. NULL, or why not, valid until the next call of this thread. To be called before any
 * other function here, by one thread at a time.
 */
const char *kiln_fdb_load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return dlerror();
    FUNCTIONS(FIND, FIND_VOID)
    return NULL;
}
