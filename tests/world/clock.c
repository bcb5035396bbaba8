/* A wall clock of one process's own: shifted by so many seconds, or jumping by up to ten years at each look.

   Preloaded (LD_PRELOAD) into processes that a test starts; only CLOCK_REALTIME is touched, as when somebody sets the
   machine's clock. PEGASHM_TEST_CLOCK is a number of seconds, or "wild". */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static _Atomic long long shift_s;
static _Atomic unsigned looks;
static _Atomic int wild;

__attribute__((constructor)) static void begin(void) {
  const char* const said = getenv("PEGASHM_TEST_CLOCK");
  if (said == NULL) return;
  wild = strcmp(said, "wild") == 0;
  shift_s = wild ? 0 : atoll(said);
}

void pegashm_test_shift_clock(long long seconds) { shift_s = seconds; }

static long long jump(void) {
  if (!wild) return shift_s;
  const unsigned look = atomic_fetch_add(&looks, 1) * 2654435761u; /* no generator: only has to leap about */
  return (long long)(look % 630720000u) - 315360000;
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  const int result = (int)syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
  return result;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* out) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (out != NULL) *out = exact.tv_sec;
  return exact.tv_sec;
}
