package fake

import "sync"

// console keeps the last bytes that a VM wrote: keep of them at least. Offsets count from the first
// byte ever written.
type console struct {
	keep int

	mu   sync.Mutex
	base int64 // offset of data[0]
	data []byte
}

// Write implements io.Writer; it never fails.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(p)
	if drop := n - c.keep; drop > 0 { // what could not be kept anyway is not copied
		c.base, c.data, p = c.base+int64(len(c.data)+drop), nil, p[drop:]
	}
	c.data = append(c.data, p...)
	if drop := len(c.data) - c.keep; drop > c.keep { // at twice the size, so that short writes stay cheap
		c.base += int64(drop)
		c.data = append([]byte(nil), c.data[drop:]...)
	}
	return n, nil
}

// from copies at most limit bytes from an offset on.
func (c *console) from(offset, limit int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := min(max(offset-c.base, 0), int64(len(c.data)))
	rest := c.data[start:]
	return append([]byte(nil), rest[:min(max(limit, 0), int64(len(rest)))]...)
}
