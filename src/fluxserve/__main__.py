"""`python -m fluxserve` is the `fluxserve` command."""

from fluxserve.cli import main

main()
