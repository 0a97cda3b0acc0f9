package fleet

import "gpuserver"

// key names what a worker works on: a VM or a job, never both.
type key struct {
	job gpuserver.JobID
	vm  gpuserver.VMID
}
