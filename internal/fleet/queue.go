package fleet

import "gpuserver"

// key names what a worker works on: a VM, a job, or running a job again.
type key struct {
	job   gpuserver.JobID
	vm    gpuserver.VMID
	rerun bool // job is to be run again
}
