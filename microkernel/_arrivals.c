/* What has come and waits to be read, in C (hot: once an event and once an item); arrivals.py is the reference.

   An item that is there is handed over without a coroutine being made. Whatever is not plain (nothing is there, credit is
   due, bytes are counted) is asked of Python: `first()`. An item is taken by the await, not by `__anext__()`: a reader
   that is cancelled in between has lost none. Python 3.11 and newer. */

#include "_coroutine.h"

static PyObject *s_popleft, *s_first, *s_throw, *s_close;

/* ---- Arrivals ---- */

typedef struct {
    PyObject_HEAD
    PyObject *items; /* a deque */
    PyObject *shape; /* what is done to each item, or None */
    Py_ssize_t plain; /* so many items may be taken without asking; negative: any number */
} Arrivals;

static PyMemberDef Arrivals_members[] = {
    {"items", _Py_T_OBJECT, offsetof(Arrivals, items), 0, NULL},
    {"shape", _Py_T_OBJECT, offsetof(Arrivals, shape), 0, NULL},
    {"plain", Py_T_PYSSIZET, offsetof(Arrivals, plain), 0, NULL},
    {NULL},
};

/* Whether an item may be taken at once; -1 with an error set. */
static int
is_plain(Arrivals *self)
{
    if (self->plain == 0 || self->items == NULL) {
        return 0;
    }
    PyObject *items = Py_NewRef(self->items);
    int some = PyObject_IsTrue(items);
    Py_DECREF(items);
    return some;
}

static PyObject *
take(Arrivals *self)
{
    PyObject *items = Py_NewRef(self->items == NULL ? Py_None : self->items);
    PyObject *item = PyObject_CallMethodNoArgs(items, s_popleft);
    Py_DECREF(items);
    if (item == NULL) {
        return NULL;
    }
    if (self->plain > 0) {
        self->plain--;
    }
    if (self->shape != NULL && self->shape != Py_None) {
        PyObject *shape = Py_NewRef(self->shape);
        Py_SETREF(item, PyObject_CallOneArg(shape, item));
        Py_DECREF(shape);
    }
    return item;
}

/* ---- Ready: an awaitable that takes the item which was there when it was made ---- */

typedef struct {
    PyObject_HEAD
    Arrivals *arrivals; /* NULL once it was awaited */
    PyObject *first;    /* the coroutine that waits, if somebody else was quicker */
    unsigned char entered;
} Ready;

static PyTypeObject ReadyType;

enum { SPARE = 64 };
static Ready *spare[SPARE];
static int spares;

static PyObject *
ready_of(Arrivals *arrivals)
{
    Ready *self;
    if (spares > 0) {
        self = spare[--spares];
        _Py_NewReference((PyObject *)self);
    }
    else {
        self = PyObject_GC_New(Ready, &ReadyType);
        if (self == NULL) {
            return NULL;
        }
    }
    self->arrivals = (Arrivals *)Py_NewRef(arrivals);
    self->first = NULL;
    self->entered = 0;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int
Ready_traverse(Ready *self, visitproc visit, void *arg)
{
    Py_VISIT(self->arrivals);
    Py_VISIT(self->first);
    return 0;
}

static int
Ready_clear(Ready *self)
{
    Py_CLEAR(self->arrivals);
    Py_CLEAR(self->first);
    return 0;
}

static void
Ready_dealloc(Ready *self)
{
    PyObject_GC_UnTrack(self);
    Ready_clear(self);
    if (spares < SPARE) {
        spare[spares++] = self;
    }
    else {
        PyObject_GC_Del(self);
    }
}

/* Nobody may drive it who is called from within; and it serves once. */
static int
enter(Ready *self)
{
    if (!self->entered && self->arrivals == NULL && self->first == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited item");
        return -1;
    }
    return enter_coroutine(&self->entered);
}

static PySendResult
step(Ready *self, PyObject *arg, PyObject **result)
{
    if (self->first == NULL) {
        Arrivals *arrivals = self->arrivals;
        self->arrivals = NULL;
        int plain = is_plain(arrivals);
        if (plain > 0) {
            *result = take(arrivals);
        }
        else if (plain == 0) {
            self->first = PyObject_CallMethodNoArgs((PyObject *)arrivals, s_first);
        }
        Py_DECREF(arrivals);
        if (self->first == NULL) {
            return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
        }
        arg = Py_None;
    }
    PySendResult how = PyIter_Send(self->first, arg, result);
    if (how != PYGEN_NEXT) {
        Py_CLEAR(self->first);
    }
    return how;
}

static PySendResult
Ready_send(Ready *self, PyObject *arg, PyObject **result)
{
    *result = NULL;
    if (enter(self) < 0) {
        return PYGEN_ERROR;
    }
    PySendResult how = step(self, arg, result);
    self->entered = 0;
    return how;
}

static PyObject *
Ready_send_method(Ready *self, PyObject *arg)
{
    PyObject *value;
    PySendResult how = Ready_send(self, arg, &value);
    return sent(how, value);
}

static PyObject *
Ready_next(Ready *self)
{
    return Ready_send_method(self, Py_None);
}

/* What is thrown before it was awaited leaves the item where it is. */
static PyObject *
throw_outside(Ready *self, PyObject *const *args, Py_ssize_t count)
{
    if (set_thrown(args, count) == 0) {
        Py_CLEAR(self->arrivals);
    }
    return NULL;
}

static PyObject *
throw_inside(Ready *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *method = PyObject_GetAttr(self->first, s_throw);
    PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)count, NULL);
    Py_XDECREF(method);
    if (result == NULL) {
        Py_CLEAR(self->first);
    }
    return result;
}

static PyObject *
Ready_throw(Ready *self, PyObject *const *args, Py_ssize_t count)
{
    if (check_thrown(count) < 0 || enter(self) < 0) {
        return NULL;
    }
    PyObject *result = self->first == NULL ? throw_outside(self, args, count) : throw_inside(self, args, count);
    self->entered = 0;
    return result;
}

static PyObject *
Ready_close(Ready *self, PyObject *Py_UNUSED(ignored))
{
    if (self->arrivals == NULL && self->first == NULL && !self->entered) {
        Py_RETURN_NONE;
    }
    if (enter(self) < 0) {
        return NULL;
    }
    PyObject *closed = self->first == NULL ? Py_NewRef(Py_None) : PyObject_CallMethodNoArgs(self->first, s_close);
    Ready_clear(self);
    self->entered = 0;
    return closed;
}

static PyMethodDef Ready_methods[] = {
    {"send", (PyCFunction)Ready_send_method, METH_O, "As of a coroutine."},
    {"throw", (PyCFunction)(void (*)(void))Ready_throw, METH_FASTCALL, "As of a coroutine."},
    {"close", (PyCFunction)Ready_close, METH_NOARGS, "As of a coroutine."},
    {NULL},
};

static PyAsyncMethods Ready_async = {.am_await = PyObject_SelfIter, .am_send = (sendfunc)Ready_send};

static PyTypeObject ReadyType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._arrivals.Ready",
    .tp_doc = "An awaitable that takes one item: a coroutine to whoever awaits it.",
    .tp_basicsize = sizeof(Ready),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)Ready_dealloc,
    .tp_traverse = (traverseproc)Ready_traverse,
    .tp_clear = (inquiry)Ready_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)Ready_next,
    .tp_as_async = &Ready_async,
    .tp_methods = Ready_methods,
};

static PyObject *
Arrivals_anext(Arrivals *self)
{
    int plain = is_plain(self);
    if (plain < 0) {
        return NULL;
    }
    return plain ? ready_of(self) : PyObject_CallMethodNoArgs((PyObject *)self, s_first);
}

static int
Arrivals_traverse(Arrivals *self, visitproc visit, void *arg)
{
    Py_VISIT(self->items);
    Py_VISIT(self->shape);
    return 0;
}

static int
Arrivals_clear(Arrivals *self)
{
    Py_CLEAR(self->items);
    Py_CLEAR(self->shape);
    return 0;
}

static void
Arrivals_dealloc(Arrivals *self)
{
    PyObject_GC_UnTrack(self);
    Arrivals_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyAsyncMethods Arrivals_async = {.am_aiter = PyObject_SelfIter, .am_anext = (unaryfunc)Arrivals_anext};

static PyTypeObject ArrivalsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "microkernel._arrivals.Arrivals",
    .tp_doc = "What has come and waits to be read; see arrivals.py.",
    .tp_basicsize = sizeof(Arrivals),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)Arrivals_dealloc,
    .tp_traverse = (traverseproc)Arrivals_traverse,
    .tp_clear = (inquiry)Arrivals_clear,
    .tp_as_async = &Arrivals_async,
    .tp_members = Arrivals_members,
};

static int
module_exec(PyObject *self)
{
    if (check_interpreter() < 0) {
        return -1;
    }
    Py_XSETREF(s_popleft, PyUnicode_InternFromString("popleft"));
    Py_XSETREF(s_first, PyUnicode_InternFromString("first"));
    Py_XSETREF(s_throw, PyUnicode_InternFromString("throw"));
    Py_XSETREF(s_close, PyUnicode_InternFromString("close"));
    if (s_popleft == NULL || s_first == NULL || s_throw == NULL || s_close == NULL) {
        return -1;
    }
    return PyModule_AddType(self, &ReadyType) < 0 ? -1 : PyModule_AddType(self, &ArrivalsType);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    MAIN_INTERPRETER_SLOT
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "microkernel._arrivals",
    .m_doc = "What has come and waits to be read, in C; arrivals.py is the reference.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__arrivals(void)
{
    return PyModuleDef_Init(&module);
}
