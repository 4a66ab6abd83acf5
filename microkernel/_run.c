/* The fast path of a gated call in C (hot: once a message): the same meaning as run.py, which is the reference.

   What is here is what happens when nothing goes wrong and nobody waits: a slot is taken, the handler runs in its
   caller's task, the slot is given back. Everything else (admission, deadlines, kills, errors) is Python, in gate.py,
   stream.py and port.py, and is called from here by name.

   What is called from here may do anything: drive or close the very run that it is called from, set a member, drop the
   last reference to what it is. So a run knows when somebody is inside, and what is called is held for as long.
   Python 3.11 and newer; public C API but for `_Py_NewReference`, which every list of spare objects needs. */

#include "_coroutine.h"

#include <time.h>

static PyObject *current_var;   /* the ContextVar of message.py */
static PyObject *task_of_loop;  /* loop -> its running task */
static PyObject *rest_type;     /* what begin() gives for a coroutine that waits */
static PyObject *s_slow, *s_release, *s_suspended, *s_failure, *s_over, *s_first, *s_ended, *s_turn, *s_throw, *s_close,
    *s_call_soon;

/* ---- Budget: an inline chain of calls gives the loop its turn after so many seconds ---- */

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *turn;    /* bound method, made once: it is scheduled in most turns of a busy loop */
    double seconds;
    double began, sampled;
    Py_ssize_t countdown, stride;
    char armed;
} Budget;

enum { LEAST_STRIDE = 1, MOST_STRIDE = 64, FIRST_STRIDE = 16 };

static double
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* 1 if the chain has used its time up, 0 if not, -1 with an error set. Looks at the clock once in `stride` calls. */
static int
budget_spent(Budget *self)
{
    double now = monotonic();
    if (!self->armed) {
        if (self->loop == NULL) {
            PyErr_SetString(PyExc_AttributeError, "this budget has no loop");
            return -1;
        }
        PyObject *handle = PyObject_CallMethodOneArg(self->loop, s_call_soon, self->turn);
        if (handle == NULL) {
            return -1;
        }
        Py_DECREF(handle);
        self->armed = 1;
        self->began = self->sampled = now;
        self->countdown = self->stride;
        return 0;
    }
    double each = (now - self->sampled) / (double)self->stride;
    double fit = each > 0 ? self->seconds / 8 / each : MOST_STRIDE;
    self->stride = fit < LEAST_STRIDE ? LEAST_STRIDE : fit < MOST_STRIDE ? (Py_ssize_t)fit : MOST_STRIDE; /* or NaN */
    self->sampled = now;
    self->countdown = self->stride;
    return now - self->began >= self->seconds;
}

static PyObject *
Budget_turn(Budget *self, PyObject *Py_UNUSED(ignored))
{
    self->armed = 0;
    self->countdown = self->stride;
    Py_RETURN_NONE;
}

static PyObject *
Budget_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", "seconds", NULL};
    PyObject *loop;
    double seconds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Od:Budget", names, &loop, &seconds)) {
        return NULL;
    }
    Budget *self = (Budget *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->seconds = seconds;
    self->countdown = self->stride = FIRST_STRIDE;
    self->loop = Py_NewRef(loop);
    self->turn = PyObject_GetAttr((PyObject *)self, s_turn);
    if (self->turn == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
Budget_traverse(Budget *self, visitproc visit, void *arg)
{
    Py_VISIT(self->loop);
    Py_VISIT(self->turn);
    return 0;
}

static int
Budget_clear(Budget *self)
{
    Py_CLEAR(self->loop);
    Py_CLEAR(self->turn);
    return 0;
}

static void
Budget_dealloc(Budget *self)
{
    PyObject_GC_UnTrack(self);
    Budget_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Budget_methods[] = {
    {"turn", (PyCFunction)Budget_turn, METH_NOARGS, "The loop has had its turn: count anew."},
    {NULL},
};

static PyTypeObject BudgetType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._run.Budget",
    .tp_doc = "How long inline calls may keep the loop from others; see run.py.",
    .tp_basicsize = sizeof(Budget),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Budget_new,
    .tp_dealloc = (destructor)Budget_dealloc,
    .tp_traverse = (traverseproc)Budget_traverse,
    .tp_clear = (inquiry)Budget_clear,
    .tp_methods = Budget_methods,
};

/* ---- Admission: what a gate's fast path looks at ---- */

typedef struct {
    PyObject_HEAD
    PyObject *handler;
    Budget *budget;
    Py_ssize_t free, calls, failures;
    char barred;  /* closed, or somebody waits, or somebody wants to hear of the end: Python decides */
} Admission;

static PyMemberDef Admission_members[] = {
    {"handler", Py_T_OBJECT_EX, offsetof(Admission, handler), 0, NULL},
    {"budget", Py_T_OBJECT_EX, offsetof(Admission, budget), 1, NULL},
    {"free", Py_T_PYSSIZET, offsetof(Admission, free), 0, NULL},
    {"calls", Py_T_PYSSIZET, offsetof(Admission, calls), 0, NULL},
    {"failures", Py_T_PYSSIZET, offsetof(Admission, failures), 0, NULL},
    {"barred", Py_T_BOOL, offsetof(Admission, barred), 0, NULL},
    {NULL},
};

static int
Admission_init(Admission *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"handler", "free", "budget", NULL};
    PyObject *handler, *budget;
    Py_ssize_t free;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OnO!:Admission", names, &handler, &free, &BudgetType, &budget)) {
        return -1;
    }
    Py_XSETREF(self->handler, Py_NewRef(handler));
    Py_XSETREF(self->budget, (Budget *)Py_NewRef(budget));
    self->free = free;
    self->calls = self->failures = 0;
    self->barred = 0;
    return 0;
}

static int
Admission_traverse(Admission *self, visitproc visit, void *arg)
{
    Py_VISIT(self->handler);
    Py_VISIT(self->budget);
    return 0;
}

static int
Admission_clear(Admission *self)
{
    Py_CLEAR(self->handler);
    Py_CLEAR(self->budget);
    return 0;
}

static void
Admission_dealloc(Admission *self)
{
    PyObject_GC_UnTrack(self);
    Admission_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* ---- Pulls: an open stream ---- */

typedef struct {
    PyObject_HEAD
    PyObject *next;   /* the generator's bound __anext__ while items can be pulled without looking, else NULL */
    PyObject *call;
    PyObject *task;   /* who reads */
    PyObject *loop;
    Admission *gate;
} Pulls;

/* ---- Run: one call, or one pull of a stream; a coroutine to its caller ---- */

enum State { NEW, ADMITTED, BREATHING, QUEUED, RUNNING, DONE };

typedef struct {
    PyObject_HEAD
    PyObject *origin;     /* Method, gate or stream: whom to ask when it is not plain; all are NULL once it is over */
    Admission *gate;
    PyObject *message;    /* one argument, or a tuple of them if `packed`, or NULL for none; of a pull, what to pull */
    PyObject *call;
    PyObject *coroutine;  /* the handler's, or while QUEUED that of the slow path */
    PyObject *token;
    PyObject *tracker;    /* made by Python at the first suspension */
    unsigned char state, packed, is_pull, entered;
} Run;

static PyTypeObject RunType, MethodType, PullsType;

enum { SPARE = 128 };
static Run *spare[SPARE];
static int spares;

static Run *
run_new(PyObject *origin, Admission *gate, PyObject *message, PyObject *call, int packed)
{
    Run *self;
    if (spares > 0) {
        self = spare[--spares];
        _Py_NewReference((PyObject *)self);
    }
    else {
        self = PyObject_GC_New(Run, &RunType);
        if (self == NULL) {
            return NULL;
        }
    }
    self->origin = Py_NewRef(origin);
    self->gate = (Admission *)Py_NewRef(gate);
    self->message = Py_XNewRef(message);
    self->call = Py_NewRef(call);
    self->coroutine = self->token = self->tracker = NULL;
    self->state = NEW;
    self->packed = (unsigned char)packed;
    self->is_pull = self->entered = 0;
    PyObject_GC_Track(self); /* 1 ns, and one that is never awaited can be collected with what holds it */
    return self;
}

static int
Run_traverse(Run *self, visitproc visit, void *arg)
{
    Py_VISIT(self->origin);
    Py_VISIT(self->gate);
    Py_VISIT(self->message);
    Py_VISIT(self->call);
    Py_VISIT(self->coroutine);
    Py_VISIT(self->token);
    Py_VISIT(self->tracker);
    return 0;
}

static int
Run_clear(Run *self)
{
    Py_CLEAR(self->origin);
    Py_CLEAR(self->gate);
    Py_CLEAR(self->message);
    Py_CLEAR(self->call);
    Py_CLEAR(self->coroutine);
    Py_CLEAR(self->token);
    Py_CLEAR(self->tracker);
    return 0;
}

/* It is over: whoever still holds it holds nothing else by it. */
static void
let_go(Run *self)
{
    self->state = DONE;
    Run_clear(self);
}

static PyObject *Run_close(Run *self, PyObject *Py_UNUSED(ignored));

static void
Run_finalize(Run *self)
{
    if (self->state != RUNNING && self->state != QUEUED && self->state != ADMITTED) {
        return;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *closed = Run_close(self, NULL);
    if (closed == NULL) {
        PyErr_WriteUnraisable((PyObject *)self);
    }
    Py_XDECREF(closed);
    PyErr_Restore(type, value, trace);
}

static void
Run_dealloc(Run *self)
{
    if (self->state != DONE && self->state != NEW) {
        if (PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0) {
            return; /* somebody has taken hold of it again */
        }
    }
    PyObject_GC_UnTrack(self);
    Run_clear(self);
    if (spares < SPARE && !PyObject_GC_IsFinalized((PyObject *)self)) {
        spare[spares++] = self;
    }
    else {
        PyObject_GC_Del(self);
    }
}

/* The context may be another one than it began in, if a collector closes it: there is nothing to put back then. */
static void
leave_context(Run *self)
{
    if (self->token != NULL && PyContextVar_Reset(current_var, self->token) < 0) {
        PyErr_Clear();
    }
    Py_CLEAR(self->token);
}

/* The tracker, if it ever suspended, hears of the end. */
static int
ended(Run *self)
{
    if (self->tracker == NULL) {
        return 0;
    }
    PyObject *done = PyObject_CallMethodNoArgs(self->tracker, s_ended);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int
release(Run *self)
{
    if (self->is_pull) {
        return 0; /* its stream holds the slot */
    }
    if (!self->gate->barred) {
        self->gate->free++;
        return 0;
    }
    PyObject *done = PyObject_CallMethodNoArgs((PyObject *)self->gate, s_release);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The handler has raised, and it is over: Python says what the caller gets instead. */
static void
fail(Run *self)
{
    PyObject *type, *value, *trace, *raised;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL) {
        PyException_SetTraceback(value, trace);
    }
    if (PyErr_GivenExceptionMatches(value, PyExc_GeneratorExit)) { /* it was closed, which is no failure */
        raised = ended(self) < 0 ? NULL : Py_NewRef(value);
    }
    else {
        PyObject *tracker = self->tracker == NULL ? Py_None : self->tracker;
        PyObject *who = self->is_pull ? self->origin : (PyObject *)self->gate;
        raised = PyObject_CallMethodObjArgs(who, self->is_pull ? s_over : s_failure, tracker, value, NULL);
    }
    if (raised == NULL) {
        Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
        PyErr_Fetch(&type, &value, &trace);
    }
    leave_context(self);
    if (release(self) < 0) {
        PyErr_WriteUnraisable((PyObject *)self->gate);
    }
    let_go(self);
    if (raised == NULL || raised == value) {
        Py_XDECREF(raised);
        PyErr_Restore(type, value, trace);
    }
    else {
        Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        Py_DECREF(raised);
    }
}

/* The handler has returned `result`, a new reference that passes through, and it is over. */
static PySendResult
finish(Run *self, PyObject **result)
{
    if (ended(self) < 0) {
        Py_CLEAR(*result);
        fail(self);
        return PYGEN_ERROR;
    }
    leave_context(self);
    int failed = release(self) < 0;
    let_go(self);
    if (failed) {
        Py_CLEAR(*result);
        return PYGEN_ERROR;
    }
    return PYGEN_RETURN;
}

/* GeneratorExit goes in, and the handler is to end by it. 0, or -1 with what it ended by instead. */
static int
shut(Run *self)
{
    PyObject *result = PyObject_CallMethodOneArg(self->coroutine, s_throw, PyExc_GeneratorExit);
    if (result != NULL) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "generator ignored GeneratorExit");
    }
    else if (PyErr_ExceptionMatches(PyExc_StopIteration) || PyErr_ExceptionMatches(PyExc_GeneratorExit)) {
        PyErr_Clear();
        PyObject *none = Py_NewRef(Py_None);
        if (finish(self, &none) == PYGEN_ERROR) {
            return -1;
        }
        Py_DECREF(none);
        return 0;
    }
    fail(self);
    return -1;
}

/* The slow path, a coroutine that does it all: from now on this run only hands through. */
static int
queue(Run *self)
{
    PyObject *slow;
    if (Py_TYPE(self->origin) == &MethodType) {
        PyObject *message = self->message == NULL ? Py_None : self->message;
        slow = PyObject_CallMethodOneArg(self->origin, s_slow, message);
    }
    else {
        slow = PyObject_CallMethodObjArgs(self->origin, s_slow, self->message, self->call, NULL);
    }
    if (slow == NULL) {
        let_go(self);
        return -1;
    }
    self->coroutine = slow;
    self->state = QUEUED;
    return 0;
}

static int
start(Run *self)
{
    self->token = PyContextVar_Set(current_var, self->call);
    if (self->token == NULL) {
        return -1;
    }
    PyObject *handler = Py_XNewRef(self->gate->handler);
    if (handler == NULL) {
        PyErr_SetString(PyExc_AttributeError, "this gate has no handler");
        return -1;
    }
    if (self->message == NULL) {
        self->coroutine = PyObject_CallNoArgs(handler);
    }
    else if (self->packed) {
        self->coroutine = PyObject_Call(handler, self->message, NULL);
    }
    else {
        self->coroutine = PyObject_CallOneArg(handler, self->message);
    }
    Py_DECREF(handler);
    return self->coroutine == NULL ? -1 : 0;
}

static int
start_pull(Run *self)
{
    Pulls *stream = (Pulls *)self->origin;
    PyObject *loop = Py_NewRef(stream->loop == NULL ? Py_None : stream->loop);
    PyObject *task = PyObject_CallOneArg(task_of_loop, loop);
    Py_DECREF(loop);
    if (task == NULL) {
        return -1;
    }
    Py_XSETREF(stream->task, task); /* a stream may be handed from one reader to the next */
    self->token = PyContextVar_Set(current_var, self->call);
    if (self->token == NULL) {
        return -1;
    }
    self->coroutine = PyObject_CallNoArgs(self->message);
    return self->coroutine == NULL ? -1 : 0;
}

/* Whether the loop is to have its turn first; -1 with an error set. */
static int
is_spent(Run *self)
{
    Budget *budget = self->gate->budget;
    if (budget == NULL) {
        PyErr_SetString(PyExc_AttributeError, "this gate has no budget");
        return -1;
    }
    if (--budget->countdown > 0) {
        return 0;
    }
    Py_INCREF(budget);
    int spent = budget_spent(budget);
    Py_DECREF(budget);
    return spent;
}

/* From NEW, BREATHING or ADMITTED to where there is a coroutine to be sent to, or to the end. */
static PySendResult
begin(Run *self, PyObject **result)
{
    if (self->state == NEW && !self->is_pull) {
        int spent = is_spent(self);
        if (spent < 0) {
            let_go(self);
            return PYGEN_ERROR;
        }
        if (spent) {
            self->state = BREATHING;
            *result = Py_NewRef(Py_None); /* a bare yield: the loop has its turn */
            return PYGEN_NEXT;
        }
    }
    if (self->state != ADMITTED && !self->is_pull) {
        if (self->gate->barred || self->gate->free <= 0) {
            return queue(self) < 0 ? PYGEN_ERROR : PYGEN_RETURN;
        }
        self->gate->free--;
    }
    self->state = RUNNING;
    if (self->is_pull ? start_pull(self) < 0 : (self->gate->calls++, start(self) < 0)) {
        fail(self);
        return PYGEN_ERROR;
    }
    return PYGEN_RETURN;
}

static PySendResult
step(Run *self, PyObject *arg, PyObject **result)
{
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited call");
        return PYGEN_ERROR;
    }
    if (self->coroutine == NULL) {
        if (arg != Py_None && self->state != BREATHING) {
            PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
            return PYGEN_ERROR;
        }
        PySendResult begun = begin(self, result);
        if (begun != PYGEN_RETURN) {
            return begun;
        }
        arg = Py_None;
    }
    PySendResult how = PyIter_Send(self->coroutine, arg, result);
    if (how == PYGEN_NEXT) {
        if (self->tracker == NULL && self->state == RUNNING) {
            PyObject *hold = self->is_pull ? Py_False : Py_True;
            self->tracker = PyObject_CallMethodObjArgs((PyObject *)self->gate, s_suspended, self->call, hold, NULL);
            if (self->tracker == NULL) {
                Py_CLEAR(*result);
                fail(self);
                return PYGEN_ERROR;
            }
        }
        return PYGEN_NEXT;
    }
    if (self->state == QUEUED) {
        let_go(self);
        return how;
    }
    if (how == PYGEN_RETURN) {
        return finish(self, result);
    }
    fail(self);
    return PYGEN_ERROR;
}

static PySendResult
Run_send(Run *self, PyObject *arg, PyObject **result)
{
    *result = NULL;
    if (enter_coroutine(&self->entered) < 0) {
        return PYGEN_ERROR;
    }
    PySendResult how = step(self, arg, result);
    self->entered = 0;
    return how;
}

static PyObject *
Run_send_method(Run *self, PyObject *arg)
{
    PyObject *result;
    PySendResult how = Run_send(self, arg, &result);
    return sent(how, result);
}

static PyObject *
Run_next(Run *self)
{
    return Run_send_method(self, Py_None);
}

/* Nobody is inside to hear of what is thrown: it has not begun. */
static void
throw_outside(Run *self, PyObject *const *args, Py_ssize_t count)
{
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited call");
        return;
    }
    if (set_thrown(args, count) < 0) {
        return;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (self->state == ADMITTED && release(self) < 0) {
        PyErr_WriteUnraisable((PyObject *)self->gate);
    }
    let_go(self);
    PyErr_Restore(type, value, trace);
}

static PyObject *
throw_inside(Run *self, PyObject *const *args, Py_ssize_t count)
{
    if (self->state == RUNNING && PyErr_GivenExceptionMatches(args[0], PyExc_GeneratorExit)) {
        if (shut(self) == 0) {
            set_thrown(args, count);
        }
        return NULL;
    }
    PyObject *method = PyObject_GetAttr(self->coroutine, s_throw);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)count, NULL);
    Py_XDECREF(method);
    if (result != NULL) {
        return result;
    }
    if (self->state == QUEUED) {
        let_go(self);
        return NULL;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        fail(self);
        return NULL;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    result = PyObject_GetAttrString(value, "value");
    Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
    if (result == NULL) {
        fail(self);
        return NULL;
    }
    return finish(self, &result) == PYGEN_ERROR ? NULL : stop_with(result);
}

static PyObject *
Run_throw(Run *self, PyObject *const *args, Py_ssize_t count)
{
    if (check_thrown(count) < 0 || enter_coroutine(&self->entered) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (self->coroutine == NULL) {
        throw_outside(self, args, count);
    }
    else {
        result = throw_inside(self, args, count);
    }
    self->entered = 0;
    return result;
}

static int
close_run(Run *self)
{
    switch (self->state) {
    case RUNNING:
        return shut(self);
    case ADMITTED: {
        int failed = release(self);
        let_go(self);
        return failed;
    }
    case QUEUED: {
        PyObject *closed = PyObject_CallMethodNoArgs(self->coroutine, s_close);
        Py_XDECREF(closed);
        let_go(self);
        return closed == NULL ? -1 : 0;
    }
    default:
        let_go(self);
        return 0;
    }
}

static PyObject *
Run_close(Run *self, PyObject *Py_UNUSED(ignored))
{
    if (enter_coroutine(&self->entered) < 0) {
        return NULL;
    }
    int failed = close_run(self);
    self->entered = 0;
    return failed < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef Run_methods[] = {
    {"send", (PyCFunction)Run_send_method, METH_O, "As of a coroutine."},
    {"throw", (PyCFunction)(void (*)(void))Run_throw, METH_FASTCALL, "As of a coroutine."},
    {"close", (PyCFunction)Run_close, METH_NOARGS, "As of a coroutine."},
    {NULL},
};

static PyAsyncMethods Run_async = {.am_await = PyObject_SelfIter, .am_send = (sendfunc)Run_send};

static PyTypeObject RunType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._run.Run",
    .tp_doc = "One call, or one pull of a stream: a coroutine to its caller.",
    .tp_basicsize = sizeof(Run),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)Run_dealloc,
    .tp_finalize = (destructor)Run_finalize,
    .tp_traverse = (traverseproc)Run_traverse,
    .tp_clear = (inquiry)Run_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)Run_next,
    .tp_as_async = &Run_async,
    .tp_methods = Run_methods,
};

static PyObject *
Admission_call(Admission *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyTuple_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "call() takes a tuple of arguments and a Call");
        return NULL;
    }
    return (PyObject *)run_new((PyObject *)self, self, args[0], args[1], 1);
}

static PyObject *
Admission_admitted(Admission *self, PyObject *const *args, Py_ssize_t count)
{
    Run *run = (Run *)Admission_call(self, args, count);
    if (run != NULL) {
        run->state = ADMITTED;
    }
    return (PyObject *)run;
}

static PyMethodDef Admission_methods[] = {
    {"call", (PyCFunction)(void (*)(void))Admission_call, METH_FASTCALL, "Run the handler; see gate.py."},
    {"admitted", (PyCFunction)(void (*)(void))Admission_admitted, METH_FASTCALL, "The same, with a slot in hand."},
    {NULL},
};

static PyTypeObject AdmissionType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._run.Admission",
    .tp_doc = "What a gate's fast path looks at; see run.py.",
    .tp_basicsize = sizeof(Admission),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Admission_init,
    .tp_dealloc = (destructor)Admission_dealloc,
    .tp_traverse = (traverseproc)Admission_traverse,
    .tp_clear = (inquiry)Admission_clear,
    .tp_members = Admission_members,
    .tp_methods = Admission_methods,
};

/* ---- Pulls ---- */

static PyMemberDef Pulls_members[] = {
    {"next", _Py_T_OBJECT, offsetof(Pulls, next), 0, NULL},
    {"call", _Py_T_OBJECT, offsetof(Pulls, call), 0, NULL},
    {"task", _Py_T_OBJECT, offsetof(Pulls, task), 0, NULL},
    {"loop", _Py_T_OBJECT, offsetof(Pulls, loop), 0, NULL},
    {"gate", _Py_T_OBJECT, offsetof(Pulls, gate), 0, NULL},
    {NULL},
};

static int
is_gate(Admission *gate)
{
    return gate != NULL && PyObject_TypeCheck((PyObject *)gate, &AdmissionType);
}

static PyObject *
Pulls_anext(Pulls *self)
{
    if (self->next == NULL || self->next == Py_None || !is_gate(self->gate)) {
        return PyObject_CallMethodNoArgs((PyObject *)self, s_first);
    }
    PyObject *call = self->call == NULL ? Py_None : self->call;
    Run *run = run_new((PyObject *)self, self->gate, self->next, call, 0);
    if (run != NULL) {
        run->is_pull = 1;
    }
    return (PyObject *)run;
}

static int
Pulls_traverse(Pulls *self, visitproc visit, void *arg)
{
    Py_VISIT(self->next);
    Py_VISIT(self->call);
    Py_VISIT(self->task);
    Py_VISIT(self->loop);
    Py_VISIT(self->gate);
    return 0;
}

static int
Pulls_clear(Pulls *self)
{
    Py_CLEAR(self->next);
    Py_CLEAR(self->call);
    Py_CLEAR(self->task);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->gate);
    return 0;
}

static void
Pulls_dealloc(Pulls *self)
{
    PyObject_GC_UnTrack(self);
    Pulls_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyAsyncMethods Pulls_async = {.am_aiter = PyObject_SelfIter, .am_anext = (unaryfunc)Pulls_anext};

static PyTypeObject PullsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._run.Pulls",
    .tp_doc = "An open stream's fast path; see run.py.",
    .tp_basicsize = sizeof(Pulls),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)Pulls_dealloc,
    .tp_traverse = (traverseproc)Pulls_traverse,
    .tp_clear = (inquiry)Pulls_clear,
    .tp_as_async = &Pulls_async,
    .tp_members = Pulls_members,
};

/* ---- Method: the right to call one handler, bound once ---- */

typedef struct {
    PyObject_HEAD
    PyObject *gate;    /* None until it is bound */
    PyObject *kind;    /* the exact type of message that needs no conversion; None: the handler takes none */
    PyObject *root;    /* the Call of callers that answer nobody themselves */
    PyObject *child;   /* child(parent): the Call of those who do; None if it is to go the slow way */
    PyObject *slow;    /* slow(message): a coroutine that binds, converts and waits */
    vectorcallfunc vectorcall;
} Method;

static PyObject *
go_slow(Method *self, PyObject *message)
{
    if (self->slow == NULL) {
        PyErr_SetString(PyExc_AttributeError, "this method has no slow way");
        return NULL;
    }
    return PyObject_CallOneArg(self->slow, message == NULL ? Py_None : message);
}

static PyObject *
Method_vectorcall(Method *self, PyObject *const *args, size_t flags, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    if (count > 1 || (names != NULL && PyTuple_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "a method takes one message; give fields to Port.call");
        return NULL;
    }
    PyObject *message = count == 1 && args[0] != Py_None ? args[0] : NULL;
    int plain = message == NULL ? self->kind == Py_None : (PyObject *)Py_TYPE(message) == self->kind;
    if (!plain || self->gate == Py_None) {
        return go_slow(self, message);
    }
    PyObject *parent, *call;
    if (PyContextVar_Get(current_var, NULL, &parent) < 0) {
        return NULL;
    }
    if (parent == NULL || parent == Py_None) {
        call = Py_NewRef(self->root);
    }
    else {
        call = PyObject_CallOneArg(self->child, parent);
    }
    Py_XDECREF(parent);
    if (call == NULL) {
        return NULL;
    }
    if (call == Py_None) { /* something goes with this call that only the slow way does */
        Py_DECREF(call);
        return go_slow(self, message);
    }
    Run *run = run_new((PyObject *)self, (Admission *)self->gate, message, call, 0);
    Py_DECREF(call);
    return (PyObject *)run;
}

static PyObject *
Method_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slow", "child", NULL};
    PyObject *slow, *child;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Method", names, &slow, &child)) {
        return NULL;
    }
    Method *self = (Method *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->vectorcall = (vectorcallfunc)Method_vectorcall;
        self->gate = Py_NewRef(Py_None);
        self->slow = Py_NewRef(slow);
        self->child = Py_NewRef(child);
    }
    return (PyObject *)self;
}

static PyObject *
Method_bind(Method *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyObject_TypeCheck(args[0], &AdmissionType)) {
        PyErr_SetString(PyExc_TypeError, "bind() takes a gate, the type of its message and a Call");
        return NULL;
    }
    Py_XSETREF(self->gate, Py_NewRef(args[0]));
    Py_XSETREF(self->kind, Py_NewRef(args[1]));
    Py_XSETREF(self->root, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

static int
Method_traverse(Method *self, visitproc visit, void *arg)
{
    Py_VISIT(self->gate);
    Py_VISIT(self->kind);
    Py_VISIT(self->root);
    Py_VISIT(self->child);
    Py_VISIT(self->slow);
    return 0;
}

static int
Method_clear(Method *self)
{
    Py_XSETREF(self->gate, Py_NewRef(Py_None));
    Py_CLEAR(self->kind);
    Py_CLEAR(self->root);
    Py_CLEAR(self->child);
    Py_CLEAR(self->slow);
    return 0;
}

static void
Method_dealloc(Method *self)
{
    PyObject_GC_UnTrack(self);
    Method_clear(self);
    Py_CLEAR(self->gate);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef Method_members[] = {
    {"gate", Py_T_OBJECT_EX, offsetof(Method, gate), 1, NULL},
    {"slow", Py_T_OBJECT_EX, offsetof(Method, slow), 1, NULL},
    {NULL},
};

static PyMethodDef Method_methods[] = {
    {"bind", (PyCFunction)(void (*)(void))Method_bind, METH_FASTCALL, "From now on calls go to this gate."},
    {NULL},
};

static PyTypeObject MethodType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._run.Method",
    .tp_doc = "The right to call one handler, bound once: `await method(message)`; see run.py.",
    .tp_basicsize = sizeof(Method),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Method, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_new = Method_new,
    .tp_dealloc = (destructor)Method_dealloc,
    .tp_traverse = (traverseproc)Method_traverse,
    .tp_clear = (inquiry)Method_clear,
    .tp_members = Method_members,
    .tp_methods = Method_methods,
};

/* ---- begin: a coroutine is run up to its first wait; see begin.py ---- */

static PyObject *
begin_coroutine(PyObject *Py_UNUSED(module), PyObject *coroutine)
{
    PyObject *result;
    PySendResult how = PyIter_Send(coroutine, Py_None, &result);
    if (how != PYGEN_NEXT) {
        return how == PYGEN_RETURN ? result : NULL;
    }
    PyObject *rest = PyObject_CallFunctionObjArgs(rest_type, coroutine, result, NULL);
    Py_DECREF(result);
    return rest;
}

static PyMethodDef module_methods[] = {
    {"begin", begin_coroutine, METH_O, "Run a coroutine up to its first wait: its result, or the rest of it."},
    {NULL},
};

static int
look_up(PyObject **place, const char *module, const char *attribute)
{
    PyObject *imported = PyImport_ImportModule(module);
    if (imported == NULL) {
        return -1;
    }
    Py_XSETREF(*place, PyObject_GetAttrString(imported, attribute));
    Py_DECREF(imported);
    return *place == NULL ? -1 : 0;
}

static int
name_all(void)
{
    static const struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&s_slow, "slow"},   {&s_release, "release"}, {&s_suspended, "suspended"}, {&s_failure, "failure"},
        {&s_over, "over"},   {&s_first, "first"},     {&s_ended, "ended"},         {&s_turn, "turn"},
        {&s_throw, "throw"}, {&s_close, "close"},     {&s_call_soon, "call_soon"},
    };
    for (size_t place = 0; place < sizeof names / sizeof *names; place++) {
        Py_XSETREF(*names[place].place, PyUnicode_InternFromString(names[place].text));
        if (*names[place].place == NULL) {
            return -1;
        }
    }
    return 0;
}

static int
module_exec(PyObject *self)
{
    if (check_interpreter() < 0 || name_all() < 0 || look_up(&current_var, "microkernel.message", "_current") < 0 ||
        look_up(&task_of_loop, "microkernel.nursery", "task_of_loop") < 0 ||
        look_up(&rest_type, "microkernel.begin", "Rest") < 0) {
        return -1;
    }
    if (!PyContextVar_CheckExact(current_var)) { /* what uses it does not look again */
        PyErr_SetString(PyExc_ImportError, "microkernel.message._current is no ContextVar");
        return -1;
    }
    PyTypeObject *types[] = {&BudgetType, &AdmissionType, &RunType, &PullsType, &MethodType};
    for (size_t place = 0; place < sizeof types / sizeof *types; place++) {
        if (PyModule_AddType(self, types[place]) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    MAIN_INTERPRETER_SLOT
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "microkernel._run",
    .m_doc = "The fast path of a gated call in C; run.py is the reference.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__run(void)
{
    return PyModuleDef_Init(&module);
}
