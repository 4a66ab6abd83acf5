/* What the two C modules share: how an object of ours behaves as a coroutine, and what older Pythons call otherwise. */

#ifndef MICROKERNEL_COROUTINE_H
#define MICROKERNEL_COROUTINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <structmember.h>

#ifndef Py_T_OBJECT_EX /* older than 3.12 */
#define Py_T_OBJECT_EX T_OBJECT_EX
#define Py_T_PYSSIZET T_PYSSIZET
#define Py_T_BOOL T_BOOL
#define _Py_T_OBJECT T_OBJECT
#endif

/* Nobody may drive a coroutine who is called from within it; whoever has entered sets `*entered` to 0 at the end. */
static inline int
enter_coroutine(unsigned char *entered)
{
    if (*entered) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return -1;
    }
    *entered = 1;
    return 0;
}

/* `result` as the StopIteration that the methods of a coroutine end with; steals the reference. */
static inline PyObject *
stop_with(PyObject *result)
{
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

/* What the method `send` gives for the outcome of the slot of that name. */
static inline PyObject *
sent(PySendResult how, PyObject *result)
{
    return how == PYGEN_RETURN ? stop_with(result) : result; /* else NULL with an error, or what was yielded */
}

static inline int
check_thrown(Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes from 1 to 3 arguments");
        return -1;
    }
    return 0;
}

/* Set the exception that throw() was given; -1 if it was given none. */
static inline int
set_thrown(PyObject *const *args, Py_ssize_t count)
{
    PyObject *value = count > 1 && args[1] != Py_None ? args[1] : NULL;
    if (PyExceptionClass_Check(args[0])) {
        PyErr_SetObject(args[0], value);
        return 0;
    }
    if (!PyExceptionInstance_Check(args[0]) || value != NULL) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or its class and a value");
        return -1;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(args[0]), args[0]);
    return 0;
}

/* Spare objects and what is looked up once belong to the main interpreter. */
static inline int
check_interpreter(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "the fast path serves the main interpreter only");
        return -1;
    }
    return 0;
}

#ifdef Py_mod_multiple_interpreters /* 3.12 */
#define MAIN_INTERPRETER_SLOT {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#else
#define MAIN_INTERPRETER_SLOT
#endif

#endif
