/* A wall clock that jumps, for one process and its children: preloaded, it adds to what the C library tells the
 * seconds that the file $SHOAL_CLOCK holds. Waits until a moment of that clock are told the kernel's moment. The
 * monotonic clock stays as it is, as it does when an administrator or NTP sets a machine's clock.
 * Built by `world.py`: cc -shared -fPIC -O1 -o clock.so clock.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *jump;

__attribute__((constructor)) static void open_file(void) {
    const char *path = getenv("SHOAL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) jump = page;
}

static int64_t seconds(void) { return jump ? *jump : 0; }

#define REAL(name, version) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)(version ? dlvsym(RTLD_NEXT, #name, version) : dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime, NULL);
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday, NULL);
    int result = real(now, zone);
    if (!result) now->tv_sec += seconds();
    return result;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}

static struct timespec kernels(const struct timespec *until) {
    struct timespec made = *until;
    made.tv_sec -= seconds();
    if (made.tv_sec < 0) made.tv_sec = 0;
    return made;
}

/* glibc 2.25 and newer keep a condition's clock in bit 1 of `__wrefs`: set, it is the monotonic one. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    REAL(pthread_cond_timedwait, "GLIBC_2.3.2");
    struct timespec made = cond->__data.__wrefs & 2 ? *until : kernels(until);
    return real(cond, mutex, &made);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    REAL(pthread_mutex_timedlock, NULL);
    struct timespec made = kernels(until);
    return real(mutex, &made);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    REAL(sem_timedwait, NULL);
    struct timespec made = kernels(until);
    return real(semaphore, &made);
}
