/* Signals that arrive while a step of the engine runs on the main thread.
 *
 * How CPython works. Its C handler notes a signal. The function that the program has registered runs a little later on the main thread, between
 * any two bytecodes, and may raise. An exception in the middle of a step (a slot is taken, and its request not yet stored) would leave the
 * engine's state half changed.
 *
 * What we do about it. `taio_interrupts_guard` puts `on_signal` in front of CPython's handler. While `taio_interrupts.closed`, a signal is held,
 * and `taio_interrupts_deliver` passes it on when the step has ended. Otherwise it is passed on at once, and nothing has changed. Python sees
 * none of this: signal.getsignal returns what was registered.
 *
 * Only the main thread touches these variables: a signal that the kernel delivers to another thread is sent on to the main one. So plain variables do,
 * volatile because the handler may run between any two instructions. */
#define _GNU_SOURCE
#include "native.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

struct taio_interrupts taio_interrupts;

static void (*volatile original[NSIG])(int); /* what `on_signal` stands in front of */
static volatile uint64_t held;               /* a bit for each signal */
static pthread_t main_thread;
static pid_t process; /* that `main_thread` belongs to: a child of fork starts with none */

static void on_signal(int number)
{
    int error = errno;
    if (getpid() != process) {
        original[number](number);
    } else if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, number);
    } else if (taio_interrupts.closed) {
        held |= UINT64_C(1) << (number - 1); /* another signal's handler runs before this or after it: sa_mask, below */
        taio_interrupts.waiting = 1;
    } else {
        original[number](number);
    }
    errno = error;
}

int taio_interrupts_guard(int number)
{
    struct sigaction action;
    if (number < 1 || number >= NSIG || number > 64)
        return 0;
    /* A fault repeats until its handler has done something about it, so it cannot be held. */
    if (number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL || number == SIGTRAP || number == SIGSYS || number == SIGABRT)
        return 0;
    if (sigaction(number, NULL, &action) < 0 || action.sa_flags & SA_SIGINFO || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
        return 0;
    if (getpid() != process) {
        main_thread = pthread_self();
        process = getpid();
        held = 0;
        taio_interrupts.closed = taio_interrupts.waiting = 0;
    }
    if (action.sa_handler == on_signal)
        return 1;
    original[number] = action.sa_handler;
    action.sa_handler = on_signal;
    sigfillset(&action.sa_mask);
    return sigaction(number, &action, NULL) == 0;
}

void taio_interrupts_deliver(void)
{
    while (taio_interrupts.waiting) {
        taio_interrupts.waiting = 0;
        for (int number = 1; number <= 64 && number < NSIG; number++) {
            uint64_t bit = UINT64_C(1) << (number - 1);
            if (held & bit) {
                __atomic_fetch_and(&held, ~bit, __ATOMIC_RELAXED); /* one instruction: a handler cannot come between */
                original[number](number);
            }
        }
    }
}

/* The thread of taio_interrupts_deliver_late. */
static void *send_again(void *numbers)
{
    struct timespec moment = {0, 5 * 1000 * 1000};
    nanosleep(&moment, NULL);
    for (int number = 1; number <= 64 && number < NSIG; number++)
        if ((uint64_t)(uintptr_t)numbers >> (number - 1) & 1)
            pthread_kill(main_thread, number);
    return NULL;
}

void taio_interrupts_deliver_late(void)
{
    pthread_t thread;
    sigset_t all, before;
    uint64_t numbers;
    if (!taio_interrupts.waiting)
        return;
    taio_interrupts.waiting = 0;
    numbers = __atomic_exchange_n(&held, 0, __ATOMIC_RELAXED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, send_again, (void *)(uintptr_t)numbers) == 0) {
        pthread_detach(thread);
    } else {
        __atomic_fetch_or(&held, numbers, __ATOMIC_RELAXED);
        taio_interrupts.waiting = 1;
        taio_interrupts_deliver();
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
