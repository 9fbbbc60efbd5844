"""`python -m fluxserve` is the `fluxserve` command."""

import signal
import sys

if "--parented" in sys.argv:  # Ctrl-C reaches the server too, and it ends its workers in order; before slow imports
    signal.signal(signal.SIGINT, signal.SIG_IGN)

from fluxserve.cli import main

main()
