from microkernel.arrivals import Arrivals as Arrivals
