"""Access to one cube: the owner may do everything, others what the cube grants them by name."""

from memos_vllm.cube import MemCube, Right


def may_read(cube: MemCube, principal: str) -> bool:
    return _may(cube, principal, "read")


def may_write(cube: MemCube, principal: str) -> bool:
    """Update it. Deleting it is the owner's alone."""
    return _may(cube, principal, "write")


def may_share(cube: MemCube, principal: str) -> bool:
    """Grant access to it, or put it into a bundle."""
    return _may(cube, principal, "share")


def _may(cube: MemCube, principal: str, right: Right) -> bool:
    if not principal:
        return False
    if principal == cube.owner:
        return True
    return any(grant.principal == principal and right in grant.rights for grant in cube.header.access)
