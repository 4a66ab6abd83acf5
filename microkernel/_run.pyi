from microkernel.run import Admission as Admission
from microkernel.run import Budget as Budget
from microkernel.run import Method as Method
from microkernel.run import Pulls as Pulls
